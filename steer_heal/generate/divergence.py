"""How far steering moved the next token: KL(steered || base), in nats, over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**22
N_BASE_TOP = 3


@dataclass(frozen=True, slots=True)
class Divergence:
    """Per row: KL in nats, the written token's probability under both, and the tokens base preferred."""

    kl_B: Tensor
    p_base_B: Tensor
    top_ids_BN: Tensor
    top_p_BN: Tensor


def kl(logits_BV: Tensor, base_BV: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(base)) per row in nats, float32, at temperature 1."""
    rows = max(1, _CHUNK // logits_BV.shape[-1])
    parts = zip(logits_BV.split(rows), base_BV.split(rows), strict=True)
    return torch.cat([_kl(steered, base) for steered, base in parts])


def _kl(logits_BV: Tensor, base_BV: Tensor) -> Tensor:
    logp_BV = logits_BV.float().log_softmax(dim=-1)
    logq_BV = base_BV.float().log_softmax(dim=-1)
    # A token ruled out under both adds nothing, though its difference of logs is not a number.
    terms_BV = torch.where(logp_BV == -torch.inf, 0.0, logp_BV.exp() * (logp_BV - logq_BV))
    return terms_BV.sum(dim=-1).clamp(min=0.0)


def probability(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """softmax(logits)[ids], (B,), at temperature 1."""
    logits_BV = logits_BV.float()
    return (logits_BV.gather(1, ids_B[:, None])[:, 0] - logits_BV.logsumexp(dim=-1)).exp()


def diverge(logits_BV: Tensor, base_BV: Tensor, ids_B: Tensor) -> Divergence:
    """`logits_BV` wrote `ids_B` where base had `base_BV`."""
    top_BN, top_ids_BN = base_BV.float().topk(min(N_BASE_TOP, base_BV.shape[-1]), dim=-1)
    total_B1 = base_BV.float().logsumexp(dim=-1, keepdim=True)
    return Divergence(
        kl(logits_BV, base_BV), probability(base_BV, ids_B), top_ids_BN, (top_BN - total_B1).exp()
    )
