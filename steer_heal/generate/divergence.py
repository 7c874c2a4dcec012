"""How far steering moved the next token: KL(steered || base), in nats, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
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


def diverge(logp_BV: Tensor, base_UV: Tensor, base_of_row: Sequence[int], ids_B: Tensor) -> Divergence:
    """Log-probabilities `logp_BV` wrote `ids_B` where base had the logits `base_UV[base_of_row]`."""
    of_B = torch.tensor(base_of_row, device=logp_BV.device)
    logq_UV = log_probabilities(base_UV)
    top_UN, top_ids_UN = logq_UV.topk(min(N_BASE_TOP, logq_UV.shape[-1]), dim=-1)
    rows = max(1, _CHUNK // logp_BV.shape[-1])
    kl_B = torch.cat([
        _kl(logp, logq_UV if len(logq_UV) == 1 else logq_UV[of])
        for logp, of in zip(logp_BV.split(rows), of_B.split(rows), strict=True)
    ])  # fmt: skip
    return Divergence(kl_B, logq_UV[of_B, ids_B].exp(), top_ids_UN[of_B], top_UN.exp()[of_B])
