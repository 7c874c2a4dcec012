import math

import pytest
import torch

from steer_heal.heal import losses


@pytest.mark.parametrize(("how", "wanted"), [("mean", 3.0), ("rmse", math.sqrt(11.0))])
def test_aggregates_of_known_numbers(how, wanted):
    d_N = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert losses.AGGREGATES[how](d_N).item() == pytest.approx(wanted, rel=1e-6)


def test_the_root_has_a_finite_gradient_at_zero():
    d_N = torch.zeros(3, requires_grad=True)
    losses.rmse(d_N).backward()
    assert d_N.grad is not None
    assert torch.equal(d_N.grad, torch.zeros(3))


def test_the_barrier_is_free_up_to_tau():
    for value, wanted in ((0.2, 0.0), (0.5, 0.0), (1.5, 0.3)):
        d = torch.tensor(value, requires_grad=True)
        loss = losses.barrier(d, 0.3, 0.5)
        loss.backward()
        assert loss.item() == pytest.approx(wanted)
        assert d.grad is not None
        assert d.grad.item() == pytest.approx(0.3 if value > 0.5 else 0.0)
