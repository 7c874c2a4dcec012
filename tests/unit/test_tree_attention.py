"""Attention of branches to their trunk and to themselves, against softmax written out."""

import math

import pytest
import torch

from steer_heal.forward.tree_attention import TreeAttention
from tests.close import assert_near, rounding

R, T, P, K, G, D = 3, 70, 20, 2, 3, 8


def made(largest):
    """Queries, keys and values whose largest score is `largest`, all of one sign for the first row."""
    torch.manual_seed(0)
    q, k, v = torch.randn(R, T, K * G, D), torch.randn(R, K, P + T, D), torch.randn(R, K, P + T, D)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    q[0, :, :, :], k[0, :, ::2, :] = 0.0, 0.0
    q[0, ..., 0], k[0, :, ::2, 0] = 1.0, -1.0
    return math.sqrt(largest) * q, math.sqrt(largest) * k, v


def by_hand(q, k, v, scale, before_R, window=None):
    """Each branch position sees its row's trunk up to its length, and the branch up to itself."""
    key_P = torch.arange(P + T)
    out = torch.empty_like(q)
    for row, before in enumerate(before_R):
        place_P = torch.where(key_P < P, key_P, key_P - P + before)
        for at in range(T):
            seen = torch.where(key_P < P, key_P < before, key_P - P <= at)
            if window is not None:
                seen = seen & (before + at - place_P < window)
            for head in range(K * G):
                logits = (k[row, head // G].double() @ q[row, at, head].double()) * scale
                weights = logits.masked_fill(~seen, -math.inf).softmax(-1)
                out[row, at, head] = (weights @ v[row, head // G].double()).float()
    return out


def off(largest):
    """The sum of a score, its exponential, off by as large a share of itself, and the sum over the keys."""
    return rounding(D + P + T) * max(1.0, largest)


def attended(q, k, v, scale, before_R, window=None):
    some = sorted(set(before_R))
    lengths_R = torch.tensor(before_R if len(some) > 1 else some)
    return TreeAttention(torch.arange(T)[None], lengths_R, T, P).attend(q, k, v, scale, window)


@pytest.mark.parametrize("before_R", [[P] * R, [P, 9, 14]], ids=["trunks alike", "trunks padded"])
@pytest.mark.parametrize("largest", [1.0, 100.0])
@pytest.mark.parametrize("window", [None, 30, P + T])
def test_attention_is_softmax_whatever_the_scores(before_R, largest, window):
    q, k, v = made(largest)
    expected = by_hand(q, k, v, 1.0, before_R, window)
    assert_near(attended(q, k, v, 1.0, before_R, window), expected, off(largest))


def test_branches_without_a_trunk_see_themselves_alone():
    q, k, v = made(4.0)
    k, v = k[:, :, P:], v[:, :, P:]
    found = TreeAttention(torch.arange(T)[None], torch.zeros(1, dtype=torch.long), T, 0)
    both = [torch.cat([torch.zeros(R, K, P, D), x], dim=2) for x in (k, v)]
    for window in (None, 30):
        expected = by_hand(q, *both, 0.5, [0] * R, window)
        assert_near(found.attend(q, k, v, 0.5, window), expected, off(2.0))
