"""How far steering moved the next token: KL(steered || base), in nats, over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**22
_LEAST = -1e30
"""Stands for the log-probability of a token that is ruled out, so that 0 * log 0 adds 0."""

N_BASE_TOP = 3


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per row: KL in nats, the written token's probability under base, and the tokens base preferred."""

    kl_B: Tensor
    p_base_B: Tensor
    top_ids_BN: Tensor
    top_p_BN: Tensor


def kl(logits_BV: Tensor, base_BV: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(base)) per row in nats, float32, at temperature 1."""
    rows = max(1, _CHUNK // logits_BV.shape[-1])
    parts = zip(logits_BV.split(rows), base_BV.split(rows), strict=True)
    return torch.cat([_kl(log_probabilities(steered), log_probabilities(base)) for steered, base in parts])


def _kl(logp_BV: Tensor, logq_BV: Tensor) -> Tensor:
    """sum_v p (log p - log q), rounding never below 0."""
    return torch.linalg.vecdot(logp_BV.exp(), logp_BV - logq_BV).clamp(min=0.0)


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """log softmax(logits), float32, at temperature 1; what is ruled out gets a very low number, not -inf."""
    return logits_BV.log_softmax(dim=-1, dtype=torch.float32).clamp_(min=_LEAST)


def diverge(logp_BV: Tensor, base_BV: Tensor, ids_B: Tensor) -> Divergence:
    """Log-probabilities `logp_BV` wrote `ids_B` where base had the logits `base_BV`."""
    rows = max(1, _CHUNK // logp_BV.shape[-1])
    parts = zip(logp_BV.split(rows), base_BV.split(rows), ids_B.split(rows), strict=True)
    columns = zip(*(_diverge(*part) for part in parts), strict=True)
    return Divergence(*(torch.cat(column) for column in columns))


def _diverge(logp_BV: Tensor, base_BV: Tensor, ids_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logq_BV = log_probabilities(base_BV)
    top_BN, top_ids_BN = logq_BV.topk(min(N_BASE_TOP, logq_BV.shape[-1]), dim=-1)
    p_base_B = logq_BV.gather(1, ids_B[:, None])[:, 0].exp()
    return _kl(logp_BV, logq_BV), p_base_B, top_ids_BN, top_BN.exp()
