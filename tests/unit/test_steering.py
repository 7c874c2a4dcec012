import pytest
import torch
from torch import nn

from steer_heal.config import SettingsError
from steer_heal.vectors.steering import Steering, coefficients, steer
from tests import tiny


class TupleBlock(nn.Module):
    def forward(self, hidden):
        return hidden * 2, "rest"


def hooks(blocks):
    return sum(len(block._forward_hooks) for block in blocks)


def test_a_tuple_keeps_its_rest_and_the_dtype_stays():
    block = TupleBlock()
    with steer([block], torch.ones(1, 2), torch.tensor([[1.0]])):
        hidden, rest = block(torch.ones(1, 1, 2, dtype=torch.bfloat16))
    assert rest == "rest"
    assert hidden.dtype == torch.bfloat16
    assert hidden.flatten().tolist() == [3.0, 3.0]


def test_only_layers_with_a_coefficient_get_a_hook():
    blocks = [nn.Identity() for _ in range(3)]
    with steer(blocks, torch.ones(3, 2), torch.tensor([[0.0, 1.0, 0.0]])) as steering:
        assert [len(block._forward_hooks) for block in blocks] == [0, 1, 0]
        assert steering.layers == (1,)
    assert hooks(blocks) == 0


def test_a_failed_entry_leaves_no_hook():
    class Refusing(nn.Identity):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no room")

    blocks = [nn.Identity(), Refusing()]
    with pytest.raises(RuntimeError, match="no room"), steer(blocks, torch.ones(2, 1), torch.ones(1, 2)):
        pytest.fail("entered")
    assert hooks(blocks) == 0


def test_a_coefficient_that_is_no_number_and_shapes_that_do_not_fit_are_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(SettingsError):
            Steering(torch.ones(1, 2), torch.tensor([[value]]))
    with pytest.raises(ValueError, match="must be"):
        Steering(torch.ones(2, 4), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\(M, L, D\) and \(B, L, M\)"):
        Steering(torch.ones(2, 3, 4), torch.ones(1, 3))
    with (
        pytest.raises(ValueError, match="2 directions for 1 blocks"),
        steer([nn.Identity()], torch.ones(2, 4), torch.ones(1, 2)),
    ):
        pytest.fail("entered")


def test_coefficients():
    assert coefficients(4, (1, 2), 0.5, rows=2).tolist() == [[0.0, 0.5, 0.5, 0.0]] * 2
    with pytest.raises(SettingsError, match="layers 0-3"):
        coefficients(4, (4,), 1.0)


def test_the_callers_matrices_are_left_alone():
    lm = tiny.shared("llama")
    directions_LD, coefficients_BL = torch.ones(4, 32), torch.ones(1, 4)
    with torch.no_grad(), steer(lm.blocks, directions_LD, coefficients_BL) as steering:
        lm.model(input_ids=torch.tensor([[2, 5]]))
        steering.keep(torch.tensor([0]))
    assert torch.equal(directions_LD, torch.ones(4, 32))
    assert torch.equal(coefficients_BL, torch.ones(1, 4))
