"""Attention of branches to their trunk and to themselves, against softmax written out."""

import math

import pytest
import torch

from steer_heal.instrument import queries
from steer_heal.instrument.queries import MILD, Queries
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


def attended(q, k, v, scale, before_R, largest, window=None):
    """By `Queries`, the mild way too where that may be asked: a 1 behind each value, zeros where a trunk is
    padded."""
    some = sorted(set(before_R))
    lengths_R = torch.tensor(before_R if len(some) > 1 else some)
    asked = Queries(torch.arange(T)[None], lengths_R, T, P)
    out = torch.full_like(q, math.nan)
    asked.attend(q, k, v, scale, window, out)
    if not asked.mild(q, window, largest):
        return out, None
    v1 = torch.cat([v, torch.ones(*v.shape[:-1], 1)], dim=-1)
    for row, before in enumerate(before_R):
        v1[row, :, before:P] = 0.0
    mild, across = torch.full_like(q, math.nan), torch.full_like(q, math.nan)
    asked.attend_mild(q, k, v1, scale, mild)
    asked.attend_mild(q, k.mT.contiguous().mT, v1, scale, across)
    assert_near(across, mild, off(largest))
    return out, mild


@pytest.mark.parametrize("before_R", [[P] * R, [P, 9, 14]], ids=["trunks alike", "trunks padded"])
@pytest.mark.parametrize("largest", [1.0, MILD, 2.5 * MILD])
@pytest.mark.parametrize("scores", [1 << 10, 1 << 18], ids=["many steps", "few steps"])
def test_attention_is_softmax_whatever_the_scores(before_R, largest, scores, monkeypatch):
    monkeypatch.setattr(queries, "SCORES", scores)
    q, k, v = made(largest)
    out, mild = attended(q, k, v, 1.0, before_R, largest)
    assert (mild is not None) == (largest <= MILD)
    expected = by_hand(q, k, v, 1.0, before_R)
    for found in (out, mild) if mild is not None else (out,):
        assert_near(found, expected, off(largest))


@pytest.mark.parametrize(("window", "mild"), [(30, False), (P + T, True)])
def test_a_window_counts_where_it_hides_something(window, mild):
    q, k, v = made(4.0)
    out, found = attended(q, k, v, 0.5, [P, 9, 14], 2.0, window)
    assert (found is not None) == mild
    expected = by_hand(q, k, v, 0.5, [P, 9, 14], window)
    for some in (out, found) if found is not None else (out,):
        assert_near(some, expected, off(4.0))
