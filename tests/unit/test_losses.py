import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from steer_heal.heal import losses
from tests.close import assert_near, rounding


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(3)
    student_BTV = torch.randn(2, 5, 11, generator=generator, dtype=torch.float32)
    reference_BTV = torch.randn(2, 5, 11, generator=generator, dtype=torch.float32)
    return student_BTV, reference_BTV


def test_divergences_are_those_of_torch_distributions(pair):
    student, reference = (Categorical(logits=logits) for logits in pair)
    assert_near(losses.kl_rev(*pair), kl_divergence(student, reference), rounding(11), pair[0])
    assert_near(losses.kl_fwd(*pair), kl_divergence(reference, student), rounding(11), pair[0])


@pytest.mark.parametrize(("how", "wanted"), [("mean", 3.0), ("rmse", math.sqrt(11.0))])
def test_aggregates_of_known_numbers(how, wanted):
    d_N = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert losses.AGGREGATES[how](d_N).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("how", losses.AGGREGATES)
@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_gradients_are_finite_at_zero_and_far_out(how, name, pair):
    for student, reference in ((pair[0], pair[0]), (pair[0] * 1e3, pair[1] * 1e3)):
        logits_BTV = student.clone().requires_grad_()
        d = losses.AGGREGATES[how](losses.DIVERGENCES[name](logits_BTV, reference).flatten())
        losses.barrier(d, 0.3, 0.0).backward()
        assert logits_BTV.grad is not None
        assert torch.isfinite(logits_BTV.grad).all()


def test_the_barrier_is_free_up_to_tau():
    for value, wanted in ((0.2, 0.0), (0.5, 0.0), (1.5, 0.3)):
        d = torch.tensor(value, requires_grad=True)
        loss = losses.barrier(d, 0.3, 0.5)
        loss.backward()
        assert loss.item() == pytest.approx(wanted)
        assert d.grad is not None
        assert d.grad.item() == pytest.approx(0.3 if value > 0.5 else 0.0)


def test_half_precision_logits_are_computed_in_float32(pair):
    student, reference = (logits.bfloat16() for logits in pair)
    assert losses.kl_rev(student, reference).dtype == torch.float32
    assert losses.nll_rows(student[0], torch.zeros(5, dtype=torch.long)).dtype == torch.float32
