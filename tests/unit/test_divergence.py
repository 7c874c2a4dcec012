"""What a step tells of its tokens; KL and what base prefers: `tests/property/test_steered_rows.py`."""

import torch
from torch.distributions import Categorical

from steer_heal.generate.divergence import diverge, probability


def test_probability_of_what_was_written():
    torch.manual_seed(0)
    logits_BV, ids_B = torch.randn(7, 11), torch.randint(11, (7,))
    torch.testing.assert_close(
        probability(logits_BV, ids_B), Categorical(logits=logits_BV).log_prob(ids_B).exp()
    )


def test_a_row_against_itself_is_exactly_zero():
    logits_BV, ids_B = 8 * torch.randn(7, 11), torch.zeros(7, dtype=torch.long)
    assert not diverge(logits_BV, logits_BV, range(7), ids_B).kl_B.any()
