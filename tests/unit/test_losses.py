import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from steer_heal import losses
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


def test_nll_is_the_mean_over_labelled_positions(pair):
    logits_BTV, _ = pair
    labels_BT = torch.full((2, 5), losses.IGNORE)
    labels_BT[0, 1], labels_BT[1, 4] = 3, 7
    logp = logits_BTV.log_softmax(-1)
    torch.testing.assert_close(losses.nll(logits_BTV, labels_BT), -(logp[0, 1, 3] + logp[1, 4, 7]) / 2)


def test_nothing_labelled_costs_nothing(pair):
    logits_BTV = pair[0].requires_grad_()
    loss = losses.nll(logits_BTV, torch.full((2, 5), losses.IGNORE))
    loss.backward()
    assert loss == 0.0
    assert logits_BTV.grad is not None
    assert not logits_BTV.grad.any()


@pytest.mark.parametrize(
    ("how", "wanted"),
    [("mean", 3.0), ("rmse", math.sqrt(11.0)), ("p95", 4.8), ("max", 5.0)],
)
def test_aggregates_count_only_positions_under_the_mask(how, wanted):
    d_BT = torch.tensor([[1.0, 2.0, 100.0], [3.0, 4.0, 5.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert losses.aggregate(d_BT, mask_BT, how).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("how", losses.AGGREGATES)
@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_gradients_are_finite_at_zero_and_far_out(how, name, pair):
    mask_BT = torch.ones(2, 5)
    for student, reference in ((pair[0], pair[0]), (pair[0] * 1e3, pair[1] * 1e3)):
        logits_BTV = student.clone().requires_grad_()
        d = losses.aggregate(losses.DIVERGENCES[name](logits_BTV, reference), mask_BT, how)
        losses.barrier(d, 0.3, 0.0).backward()
        assert logits_BTV.grad is not None
        assert torch.isfinite(logits_BTV.grad).all()


def test_an_empty_mask_is_zero():
    d_BT = torch.ones(2, 3, requires_grad=True)
    for how in losses.AGGREGATES:
        assert losses.aggregate(d_BT, torch.zeros(2, 3), how) == 0.0


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
    assert losses.nll(student, torch.zeros(2, 5, dtype=torch.long)).dtype == torch.float32


def test_sigma_max_is_the_product_s_largest_singular_value_and_so_is_its_slope():
    generator = torch.Generator().manual_seed(0)
    down_RI, up_OR = torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator)
    for one in (down_RI, up_OR):
        one.requires_grad_()
    with torch.enable_grad():
        ours = losses.sigma_max(down_RI, up_OR, 2.0)
        slopes = torch.autograd.grad(ours, (down_RI, up_OR))
        wanted = torch.linalg.matrix_norm(2.0 * up_OR @ down_RI, ord=2)
        wanted_slopes = torch.autograd.grad(wanted, (down_RI, up_OR))
    torch.testing.assert_close(ours, wanted)
    for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
        assert_near(slope, wanted_slope, rounding(3 + 5 + 7))
    assert losses.sigma_max(down_RI, torch.zeros(5, 3)) == 0.0
