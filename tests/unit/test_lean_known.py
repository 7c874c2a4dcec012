"""Which models our own blocks compute."""

import pytest
import torch

from steer_heal.forward import holds_on
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


CHANGES = [
    hook_a_block,
    hook_a_norm,
    replace_a_forward,
    replace_a_norm,
    another_attention,
    growing_rotary,
    training,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_does_not_know_it_leaves_to_transformers(arch, change):
    lm = tiny.language_model(arch)
    directions_LD = torch.zeros(lm.n_layers, lm.width)
    assert holds_on(lm, directions_LD)
    change(lm)
    assert not holds_on(lm, directions_LD)


def test_a_method_with_hooks_of_its_own_goes_through_transformers(lm):
    assert not holds_on(lm, object())
