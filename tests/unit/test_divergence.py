"""What a step tells of its tokens, against torch.distributions."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from steer_heal.generate.divergence import diverge, probability
from tests.close import assert_near, rounding

OF_ROW = [2, 0, 2, 1, 0, 4, 3]


@pytest.mark.parametrize("n_base", [1, 5])
def test_every_row_against_its_own_base(n_base):
    torch.manual_seed(0)
    logits_BV, base_UV = torch.randn(7, 11), torch.randn(n_base, 11)
    of_row = OF_ROW if n_base > 1 else [0] * 7
    ids_B = torch.randint(11, (7,))
    found = diverge(logits_BV, base_UV, of_row, ids_B)
    p, q = Categorical(logits=logits_BV), Categorical(logits=base_UV[of_row])
    assert_near(found.kl_B, kl_divergence(p, q), rounding(11), logits_BV)
    torch.testing.assert_close(found.p_B, p.log_prob(ids_B).exp())
    torch.testing.assert_close(found.p_base_B, q.log_prob(ids_B).exp())
    top = q.probs.topk(3, dim=-1)
    torch.testing.assert_close(found.top_p_BN, top.values)
    assert torch.equal(found.top_ids_BN, top.indices)


def test_probability_of_what_was_written():
    torch.manual_seed(0)
    logits_BV, ids_B = torch.randn(7, 11), torch.randint(11, (7,))
    torch.testing.assert_close(
        probability(logits_BV, ids_B), Categorical(logits=logits_BV).log_prob(ids_B).exp()
    )


def test_a_row_against_itself_is_exactly_zero():
    logits_BV, ids_B = 8 * torch.randn(7, 11), torch.zeros(7, dtype=torch.long)
    assert not diverge(logits_BV, logits_BV, range(7), ids_B).kl_B.any()
