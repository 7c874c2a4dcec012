"""Which models our own blocks compute, and what they are made of."""

import pytest
import torch
from torch.nn.functional import gelu

from steer_heal.forward import holds_on, pointwise
from steer_heal.forward.known import is_known
from steer_heal.forward.network import Network
from steer_heal.models import load
from tests import tiny
from tests.close import assert_near, model_rounding, rounding

CHANGES = {
    "a hook behind a block": lambda lm: lm.blocks[1].register_forward_hook(lambda *given: given[-1]),
    "a hook before a norm": lambda lm: lm.model.model.norm.register_forward_pre_hook(lambda *_: None),
    "a forward of its own": lambda lm: vars(lm.blocks[0].mlp).update(forward=lm.blocks[0].mlp.forward),
    "another attention": lambda lm: lm.config.update({"_attn_implementation": "flex_attention"}),
    "growing rotary tables": lambda lm: lm.config.update({"rope_parameters": GROWING}),
    "training": lambda lm: lm.model.train(),
    "another norm": lambda lm: lm.blocks[2].register_module("input_layernorm", torch.nn.RMSNorm(lm.width)),
}
GROWING = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_does_not_know_it_leaves_to_transformers(arch, change):
    lm = tiny.language_model(arch)
    directions_LD = torch.zeros(lm.n_layers, lm.width)
    assert holds_on(lm, directions_LD)
    CHANGES[change](lm)
    assert not holds_on(lm, directions_LD)


def test_the_bundled_model_is_known_and_a_method_with_hooks_of_its_own_goes_through_transformers(lm):
    assert is_known(load("demo", device="cpu"))
    assert not holds_on(lm, object())


@pytest.mark.parametrize("n", [3, 700, 2100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_gelu_is_torch_s_from_end_to_end(n, dtype):
    gate = torch.linspace(-80, 80, n * 64).reshape(n, 64).to(dtype)
    up = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = gelu(gate, approximate="tanh") * up
    given, before = gate.clone(), up.clone()
    made = pointwise.gated_gelu(gate, up)
    # Two sums, six products and an exponential, all in float32; of two the results are rounded.
    off = rounding(9 if dtype == torch.float32 else 2, dtype) * (given * up).abs()
    assert ((made - expected).abs() <= off).all()
    assert torch.isfinite(made).all()
    assert torch.equal(up, before)


@pytest.mark.parametrize("n", [1, 9, 48, 49])
def test_a_shared_output_layer_gives_the_same_by_either_product(n):
    lm = tiny.language_model("gemma3")
    hidden_ND = torch.randn(n, lm.width, generator=torch.Generator().manual_seed(0))
    given, logits = [], Network(lm).logits(hidden_ND)
    lm.model.lm_head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert logits.is_contiguous()
    assert_near(logits, Network(lm).logits(hidden_ND), model_rounding(lm))
    assert len(given) == 1
