"""Drawing tokens: argmax of filtered logits / temperature + Gumbel noise that rows of a request share."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steer_heal.config import SampleSettings
from steer_heal.models import SamplingDefaults

_FIRST_CANDIDATES = 128
"""So many likeliest tokens nearly always hold top-p; sorting more takes longer."""
_GAMMA = -0x61C8864680B583EB
_MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
"""SplitMix64's constants, as signed 64-bit numbers."""


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
        sources = zip(seeds or [self.seed] * len(noise_ids), noise_ids, strict=True)
        streams = [stream(*source, step) for source in sources]
        streams_B1 = torch.tensor(streams, device=logits_BV.device)[:, None]
        # Rows of one request, over the whole vocabulary.
        same = len(set(streams)) == 1 and ids_BK.stride(0) == 0
        noise_BK = exponential(streams_B1[:1], ids_BK[:1]) if same else exponential(streams_B1, ids_BK)
        best_B1 = (scores_BK - noise_BK.log()).argmax(dim=-1, keepdim=True)
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


def stream(seed: int, noise: int, step: int) -> int:
    """Where a row's random numbers of one step start: a 64-bit hash, signed."""
    digest = hashlib.blake2b(f"{seed}/{noise}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def exponential(streams: Tensor, ids: Tensor) -> Tensor:
    """Draws of Exp(1), float64, for token ids of streams (int64, broadcast); -log of one is Gumbel noise.

    What a token gets does not hang on which others are asked for, so the few that a filter leaves are enough.
    Source: SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195).
    """
    bits = (ids + 1) * _GAMMA + streams
    for shift, factor in _MIX:
        bits = (bits ^ _right(bits, shift)) * factor
    bits = bits ^ _right(bits, 31)
    return -((_right(bits, 12).double() + 0.5) * 2.0**-52).log()


def _right(bits: Tensor, by: int) -> Tensor:
    """Shifted right with zeros coming in; torch's own shift brings in copies of the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
