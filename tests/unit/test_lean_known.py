"""Which models our own blocks compute, and what it says of the others."""

import pytest
import torch

from steer_heal.forward.known import unsupported_reason
from steer_heal.generate import forward_used
from tests import tiny


def change_nothing(_module, _inputs, output):
    return output


def hook_a_block(lm):
    lm.blocks[1].register_forward_hook(change_nothing)


def hook_a_norm(lm):
    lm.model.model.norm.register_forward_pre_hook(lambda _module, _inputs: None)


def replace_a_forward(lm):
    lm.blocks[0].mlp.forward = lm.blocks[0].mlp.forward


def replace_a_norm(lm):
    lm.blocks[2].input_layernorm = torch.nn.RMSNorm(lm.width)


def another_attention(lm):
    lm.config._attn_implementation = "flex_attention"


def growing_rotary(lm):
    lm.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def training(lm):
    lm.model.train()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (hook_a_block, "hooked onto"),
        (hook_a_norm, "hooked onto"),
        (replace_a_forward, "hooked onto"),
        (replace_a_norm, "RMSNorm where"),
        (another_attention, "flex_attention"),
        (growing_rotary, "length of the text"),
        (training, "in training"),
    ],
)
def test_what_it_does_not_know_it_leaves_to_transformers(arch, change, word):
    lm = tiny.language_model(arch)
    change(lm)
    assert word in unsupported_reason(lm)
    assert forward_used(lm, torch.zeros(lm.n_layers, lm.width)).startswith("transformers' forward: ")


def test_a_method_with_hooks_of_its_own_goes_through_transformers(lm):
    assert "hooks of its own" in forward_used(lm, object())
