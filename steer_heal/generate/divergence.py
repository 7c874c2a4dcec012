"""How far steering moved the next token: KL(steered || base), in nats, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**20
"""Logits taken at once: few enough that what is made of them stays in the cache and is not mapped anew."""

_LEAST = -1e30
"""Stands for the log-probability of a token that is ruled out, so that 0 * log 0 adds 0."""

N_BASE_TOP = 3


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per row: the written token's probability, KL in nats, the token's probability under base, and the
    tokens base preferred."""

    p_B: Tensor
    kl_B: Tensor
    p_base_B: Tensor
    top_ids_BN: Tensor
    top_p_BN: Tensor


def _kl(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """sum_v p (log p - log q), rounding never below 0."""
    return torch.linalg.vecdot(logp_BV.exp(), logp_BV - logq_BV).clamp(min=0.0)


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """log softmax(logits), float32, at temperature 1; what is ruled out gets a very low number, not -inf."""
    return logits_BV.log_softmax(dim=-1, dtype=torch.float32).clamp_(min=_LEAST)


def probability(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """softmax(logits)[ids], (B,), float32."""
    rows = max(1, CHUNK // logits_BV.shape[-1])
    parts = zip(logits_BV.split(rows), ids_B.split(rows), strict=True)
    return torch.cat([log_probabilities(some).gather(1, ids[:, None])[:, 0].exp() for some, ids in parts])


def diverge(logits_BV: Tensor, base_UV: Tensor, base_of_row: Sequence[int], ids_B: Tensor) -> Divergence:
    """Rows with `logits_BV` wrote `ids_B` where base had the logits `base_UV[base_of_row]`."""
    per = max(1, CHUNK // logits_BV.shape[-1])
    of_B = torch.tensor(base_of_row, device=logits_BV.device)
    order, made = [], []
    for start in range(0, len(base_UV), per):
        logq_UV = log_probabilities(base_UV[start : start + per])
        top = logq_UV.topk(min(N_BASE_TOP, logq_UV.shape[-1]), dim=-1)
        rows = ((of_B >= start) & (of_B < start + per)).nonzero()[:, 0]
        for some in rows.split(per):
            at = of_B[some] - start
            order.append(some)
            made.append(
                (*_diverge(logits_BV[some], logq_UV, at, ids_B[some]), top.indices[at], top.values[at])
            )
    if len(made) > 1:
        back = torch.cat(order).argsort()
        made = [tuple(torch.cat(column)[back] for column in zip(*made, strict=True))]
    p_B, kl_B, p_base_B, top_ids_BN, top_BN = made[0]
    return Divergence(p_B, kl_B, p_base_B, top_ids_BN, top_BN.exp())


def _diverge(
    logits_BV: Tensor, logq_UV: Tensor, of_B: Tensor, ids_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The written tokens' probabilities, KL, and the tokens' probabilities under base."""
    logp_BV = log_probabilities(logits_BV)
    p_B = logp_BV.gather(1, ids_B[:, None])[:, 0].exp()
    kl_B = _kl(logp_BV, logq_UV if len(logq_UV) == 1 else logq_UV[of_B])
    return p_B, kl_B, logq_UV[of_B, ids_B].exp()
