"""Drawing tokens: argmax of filtered logits / temperature + Gumbel noise that rows of a request share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import SampleSettings
from ..models import SamplingDefaults

_FIRST_CANDIDATES = 128
"""So many likeliest tokens nearly always hold top-p; sorting more takes longer."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """How tokens are drawn; `top_k` 0 and `top_p` 1 filter nothing."""

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    seed: int

    def draw(
        self, logits_BV: Tensor, noise_ids: Sequence[int], step: int, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """One token a row, (B,). Equal noise ids of one seed see the same random numbers at one step.

        `seeds`: one a row, in place of the sampler's own.
        Source: the Gumbel-max trick (Gumbel, 1954): argmax(logits + Gumbel noise) ~ softmax(logits).
        """
        if self.greedy:
            return logits_BV.max(dim=-1).indices
        scores_BK, ids_BK = self._candidates(logits_BV.float() / self.temperature)
        sources = list(zip(seeds or [self.seed] * len(noise_ids), noise_ids, strict=True))
        distinct = sorted(set(sources))
        noise_NV = torch.stack([exponential(*source, step, logits_BV.shape[-1]) for source in distinct])
        row_of = torch.tensor([distinct.index(source) for source in sources])
        exponential_BK = noise_NV[row_of[:, None], ids_BK.cpu()].to(logits_BV.device)
        best_B1 = (scores_BK - exponential_BK.log()).argmax(dim=-1, keepdim=True)
        return ids_BK.gather(1, best_B1)[:, 0]

    def _candidates(self, scores_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and ids of the tokens that top-k and then top-p leave; the others among them at -inf."""
        vocabulary = scores_BV.shape[-1]
        if not self.top_k and self.top_p >= 1.0:
            return scores_BV, torch.arange(vocabulary, device=scores_BV.device).expand_as(scores_BV)
        k = min(self.top_k or _FIRST_CANDIDATES, vocabulary)
        while True:
            scores_BK, ids_BK = scores_BV.topk(k, dim=-1)
            if self.top_p >= 1.0:
                return scores_BK, ids_BK
            total_B1 = (scores_BK if self.top_k else scores_BV).logsumexp(dim=-1, keepdim=True)
            p_BK = (scores_BK - total_B1).exp()
            before_BK = p_BK.cumsum(dim=-1) - p_BK
            complete = self.top_k or k == vocabulary or bool((before_BK[:, -1] >= self.top_p).all())
            if complete:
                return scores_BK.masked_fill(before_BK >= self.top_p, -torch.inf), ids_BK
            k = min(8 * k, vocabulary)


def sampler(settings: SampleSettings, defaults: SamplingDefaults) -> Sampler:
    """The settings, with the model's own where they say nothing; temperature 0 is greedy."""
    temperature = defaults.temperature if settings.temperature is None else settings.temperature
    return Sampler(
        greedy=settings.greedy or temperature == 0.0,
        temperature=temperature,
        top_k=defaults.top_k if settings.top_k is None else settings.top_k,
        top_p=defaults.top_p if settings.top_p is None else settings.top_p,
        seed=settings.seed,
    )


def draw(samplers: Sequence[Sampler], logits_BV: Tensor, noise_ids: Sequence[int], step: int) -> Tensor:
    """One token a row, (B,), each as its own sampler says; what differs only in the seed is drawn at once."""
    rows: dict[Sampler, list[int]] = {}
    for row, how in enumerate(samplers):
        rows.setdefault(replace(how, seed=0), []).append(row)
    ids_B = torch.empty(len(samplers), dtype=torch.long, device=logits_BV.device)
    for how, some in rows.items():
        part_BV = logits_BV if len(rows) == 1 else logits_BV[some]
        ids_B[some] = how.draw(
            part_BV, [noise_ids[row] for row in some], step, [samplers[row].seed for row in some]
        )
    return ids_B


def exponential(seed: int, noise: int, step: int, size: int) -> Tensor:
    """(size,) draws of Exp(1), a pure function of its arguments; -log of one is Gumbel noise."""
    digest = hashlib.blake2b(f"{seed}/{noise}/{step}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest))
    smallest = torch.finfo(torch.float32).tiny
    return torch.empty(size).exponential_(generator=generator).clamp_(min=smallest)
