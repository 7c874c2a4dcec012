"""How near two ways to compute the same numbers come: by the number format and the length of the sum.

A rounding is off by at most half of eps, this way or that, so n of them one after another come to about
eps / 2 * sqrt(n) of the size of what is summed (Higham and Mary, "A new approach to probabilistic rounding
error analysis", 2019). That size is the norm of the whole, not of one element, which may be a small
difference of large terms. Nothing here was measured on a machine.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_heal.models import LanguageModel
from steer_heal.records import Profile

SAFETY = 4
"""Both ways round, and what is not linear on the way (a softmax, a norm) makes an error larger."""


def rounding(n: float, dtype: torch.dtype = torch.float32) -> float:
    """What n roundings one after another leave, as a share of the whole."""
    return SAFETY * torch.finfo(dtype).eps / 2 * math.sqrt(n)


def model_rounding(lm: LanguageModel, passes: int = 1) -> float:
    """`rounding` on the way from tokens to logits; the way back for gradients is a second pass.

    In float32 each term of a sum is rounded; in half the width sums are float32, and each result is rounded.
    """
    matrices = [weight for block in lm.blocks for weight in block.parameters() if weight.ndim == 2]
    terms = sum(weight.shape[1] for weight in matrices) + lm.width
    return rounding(passes * (terms if lm.dtype == torch.float32 else len(matrices) + 1), lm.dtype)


def assert_near(found: Any, wanted: Any, tolerance: float, whole: float | Tensor | None = None) -> None:
    """Numbers, sequences of them, dicts or tensors that differ by at most `tolerance` of the norm of `whole`.

    `whole`: the size of what was summed, where the result is a small difference; what is wanted when None.
    """
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        found, wanted = list(found.values()), list(wanted.values())
    given = (found, wanted, wanted if whole is None else whole)
    found, wanted, whole = (torch.as_tensor(one, dtype=torch.float64).detach() for one in given)
    assert found.shape == wanted.shape
    off, size = float((found - wanted).norm()), float(whole.norm())
    assert off <= tolerance * size, f"off by {off:.2e}, allowed is {tolerance:.2e} of {size:.2e}"


def log_p(profile: Profile) -> float:
    """The largest |log p| that a profile is made of: see `nats`."""
    return max(abs(score) for row in profile.per_vignette for score in row.score.values())


def nats(lm: LanguageModel, ids: Sequence[int]) -> float:
    """The largest |log p| after a text, of which every log-probability is off by a share.

    A probability is off by as large a share of itself as its logarithm is off by nats; so is a divergence.
    """
    with torch.no_grad():
        return float(lm.model(torch.tensor([list(ids)])).logits[0, -1].double().log_softmax(-1).abs().max())
