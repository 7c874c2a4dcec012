"""How far steering moved the next token: KL(steered || base), in nats, over the whole vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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


def log_probabilities(logits_BV: Tensor) -> Tensor:
    """log softmax(logits), float32, at temperature 1; what is ruled out gets a very low number, not -inf."""
    return logits_BV.log_softmax(dim=-1, dtype=torch.float32).clamp_(min=_LEAST)


def probability(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """softmax(logits)[ids], (B,), float32."""
    return log_probabilities(logits_BV).gather(1, ids_B[:, None])[:, 0].exp()


def diverge(logits_BV: Tensor, base_UV: Tensor, base_of_row: Sequence[int], ids_B: Tensor) -> Divergence:
    """Rows with `logits_BV` wrote `ids_B` where base had the logits `base_UV[base_of_row]`.

    KL is sum_v p (log p - log q), rounding never below 0.
    """
    of_B = torch.tensor(base_of_row, device=logits_BV.device)
    logp_BV, logq_UV = log_probabilities(logits_BV), log_probabilities(base_UV)
    off_BV = logp_BV - (logq_UV if len(logq_UV) == 1 else logq_UV[of_B])
    top = logq_UV.topk(min(N_BASE_TOP, logq_UV.shape[-1]), dim=-1)
    return Divergence(
        p_B=logp_BV.gather(1, ids_B[:, None])[:, 0].exp(),
        kl_B=torch.linalg.vecdot(logp_BV.exp(), off_BV).clamp(min=0.0),
        p_base_B=logq_UV[of_B, ids_B].exp(),
        top_ids_BN=top.indices[of_B],
        top_p_BN=top.values[of_B].exp(),
    )
