"""Our own blocks: rotary tables, and the output layer by either product."""

import pytest
import torch

from steer_heal.forward.network import Network
from tests import tiny
from tests.close import assert_near, model_rounding


@pytest.mark.parametrize("n", [1, 9, 48, 49])
def test_a_shared_output_layer_gives_the_same_by_either_product(n):
    lm = tiny.language_model("gemma3")
    hidden_ND = torch.randn(n, lm.width, generator=torch.Generator().manual_seed(0))
    given, logits = [], Network(lm).logits(hidden_ND)
    lm.model.lm_head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert logits.is_contiguous()
    assert_near(logits, Network(lm).logits(hidden_ND), model_rounding(lm))
    assert len(given) == 1
