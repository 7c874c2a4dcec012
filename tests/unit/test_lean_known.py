"""Which models our own blocks compute."""

import pytest
import torch

from steer_heal.forward import holds_on
from tests import tiny

CHANGES = {
    "a hook behind a block": lambda lm: lm.blocks[1].register_forward_hook(lambda *given: given[-1]),
    "a hook before a norm": lambda lm: lm.model.model.norm.register_forward_pre_hook(lambda *_: None),
    "a forward of its own": lambda lm: vars(lm.blocks[0].mlp).update(forward=lm.blocks[0].mlp.forward),
    "another attention": lambda lm: lm.config.update({"_attn_implementation": "flex_attention"}),
    "growing rotary tables": lambda lm: lm.config.update({"rope_parameters": GROWING}),
    "training": lambda lm: lm.model.train(),
}
GROWING = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_does_not_know_it_leaves_to_transformers(arch, change):
    lm = tiny.language_model(arch)
    directions_LD = torch.zeros(lm.n_layers, lm.width)
    assert holds_on(lm, directions_LD)
    CHANGES[change](lm)
    assert not holds_on(lm, directions_LD)


def test_a_method_with_hooks_of_its_own_goes_through_transformers(lm):
    assert not holds_on(lm, object())
