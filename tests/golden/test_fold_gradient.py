"""Invariant 4: with folded history, outputs and gradients are those of the model that has it merged."""

import pytest
import torch

from steer_heal.config import TrainSettings
from steer_heal.heal import Example, Objective, loss_of
from steer_heal.heal.adapters import AdapterStack
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.rounds import healed, shake

BATCH = [
    Example((2, 40, 41, 42), (50, 51, 52)),
    Example((2, 60, 61, 62, 63, 64), (70, 71, 72, 73, 74)),
]


def step(lm, stack, settings):
    """Loss and gradients of the adapter in training, the reference computed first."""
    loss, parts = loss_of(Objective.of(lm, stack, settings), BATCH)
    loss.backward()
    gradients = {
        name.replace("round-3", "fresh"): parameter.grad
        for name, parameter in lm.model.named_parameters()
        if parameter.requires_grad
    }
    return parts, gradients


@pytest.mark.parametrize("divergence", ["nll", "kl_rev", "kl_fwd"])
def test_folded_history_is_as_if_merged(arch, divergence):
    settings = TrainSettings(
        rank=2, divergence=divergence, reference="prev", likelihood=1.0, lam=0.7, tau=0.0
    )
    folded_lm = tiny.language_model(arch, n_layers=2)
    folded = healed(folded_lm, 2, settings)
    merged_lm = tiny.language_model(arch, n_layers=2)
    with torch.no_grad():
        for name, module in folded_lm.model.named_modules():
            if hasattr(module, "base_layer"):
                weight = module.base_layer.weight.clone()
                for adapter in ("round-1", "round-2"):
                    weight += module.get_delta_weight(adapter)
                merged_lm.model.get_submodule(name).weight.copy_(weight)
    merged = AdapterStack(merged_lm)

    for stack in (folded, merged):
        stack.fresh(3, settings, seed=3)
        shake(stack, 3)
    parts, gradients = step(folded_lm, folded, settings)
    wanted_parts, wanted = step(merged_lm, merged, settings)
    assert_near(parts, wanted_parts, model_rounding(folded_lm))
    assert gradients.keys() == wanted.keys()
    assert gradients
    whole = torch.cat([gradient.flatten() for gradient in wanted.values()])
    for name, gradient in gradients.items():
        assert_near(gradient, wanted[name], model_rounding(folded_lm, passes=2), whole)
        assert gradient.abs().max() > 0
