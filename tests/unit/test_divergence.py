"""What a step tells of its tokens; KL and what base prefers: `tests/property/test_steered_rows.py`."""

import torch

from steer_heal.generate.divergence import diverge


def test_a_row_against_itself_is_exactly_zero():
    logits_BV, ids_B = 8 * torch.randn(7, 11), torch.zeros(7, dtype=torch.long)
    assert not diverge(logits_BV, logits_BV, range(7), ids_B).kl_B.any()
