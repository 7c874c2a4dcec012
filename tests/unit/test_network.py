"""Our own blocks: rotary tables, and the output layer by either product."""

import pytest
import torch

from steer_heal.forward.network import Network
from tests import tiny
from tests.close import assert_near, model_rounding


@pytest.mark.parametrize("arch", tiny.ARCHS)
def test_rotary_tables_are_the_models_whichever_was_asked_for_first(arch):
    lm = tiny.shared(arch)
    like, net = torch.zeros(1), Network(lm)
    longest = Network(lm).rotary(90, like)
    for n in (5, 90, 7):
        for name, table in net.rotary(n, like).items():
            assert torch.equal(table.cos_N1d, longest[name].cos_N1d[:n])
            assert torch.equal(table.sin_N1d, longest[name].sin_N1d[:n])


@pytest.mark.parametrize("n", [1, 9, 48, 49])
def test_a_shared_output_layer_gives_the_same_by_either_product(n):
    lm = tiny.language_model("gemma3")
    hidden_ND = torch.randn(n, lm.width, generator=torch.Generator().manual_seed(0))
    given, logits = [], Network(lm).logits(hidden_ND)
    lm.model.lm_head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert logits.is_contiguous()
    assert_near(logits, Network(lm).logits(hidden_ND), model_rounding(lm))
    assert len(given) == 1
