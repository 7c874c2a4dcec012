"""Weights packed for products of few rows: the same numbers, and never those of a weight that has changed."""

import gc

import pytest
import torch

from steer_heal.forward import network, packed
from steer_heal.forward.network import Network
from tests import tiny
from tests.close import assert_near, model_rounding, rounding

PACKED = packed.PACKED_ROWS
CASES = [(dtype, n) for dtype, some in PACKED.items() for n in (1, 2, 9, 10, 32, 128) if n in some]
pytestmark = pytest.mark.skipif(not PACKED[torch.float32], reason="this torch has no MKL")


def rows(n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def logits(lm, n=9):
    """Of rows that attend to nothing but themselves, through every block and the head."""
    net = Network(lm)
    tables, hidden_ND = net.rotary(n, torch.zeros(1)), rows(n, lm.width)

    def itself(q_NHd, _k_NKd, v_NKd):
        return v_NKd.repeat_interleave(q_NHd.shape[1] // v_NKd.shape[1], dim=1).flatten(1)

    with torch.inference_mode():
        for block in net.blocks:
            hidden_ND = block.forward(hidden_ND, tables[block.rotary], net.head_dim, itself)
        return net.logits(hidden_ND)


def plainly(lm, monkeypatch, n=9):
    with monkeypatch.context() as patch:
        patch.setattr(network, "PACKED_BYTES", 0)
        patch.setattr(network, "packed", lambda _weights: pytest.fail("nothing is to be packed"))
        return logits(lm, n)


@pytest.mark.parametrize(("dtype", "n"), CASES)
@pytest.mark.parametrize("sizes", [(7,), (64, 24, 24), (3072,)])
def test_products_are_those_of_the_weights_end_to_end(dtype, n, sizes):
    weights: list[torch.Tensor] = [torch.nn.Parameter(rows(size, 48).to(dtype)) for size in sizes]
    weights[0].data = weights[0].data.t().contiguous().t()
    x_ND = rows(n, 48).to(dtype)
    found, wanted_ND = packed.packed(weights)(x_ND), x_ND.double() @ torch.cat(weights).double().T
    assert found.dtype == dtype
    # In half the width sums are float32, and each result is rounded once.
    assert_near(found, wanted_ND, rounding(48 if dtype == torch.float32 else 1, dtype))


def in_place(weight):
    weight.mul_(1.5)


def another(weight):
    weight.data = 1.5 * weight


@pytest.mark.parametrize("change", [in_place, another])
@pytest.mark.parametrize("part", ["self_attn.v_proj", "mlp.down_proj"])
def test_a_weight_that_changes_is_packed_anew(part, change, monkeypatch):
    lm = tiny.language_model("llama")
    before = logits(lm)
    with torch.no_grad():
        change(lm.blocks[1].get_submodule(part).weight)
    assert not torch.allclose(logits(lm), before, atol=1e-2)
    assert_near(logits(lm), plainly(lm, monkeypatch), model_rounding(lm))


def test_what_is_packed_goes_with_its_weights():
    gc.collect()
    n = len(packed.KNOWN)
    lm = tiny.language_model("llama")
    logits(lm)
    assert len(packed.KNOWN) > n
    del lm
    gc.collect()
    assert len(packed.KNOWN) == n
