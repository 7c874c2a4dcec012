"""Attention over a prompt that rows may share, and over each row's own tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

HIDDEN = -1e30
"""A score that no key survives, finite so that a wholly hidden part has weight 0 and not NaN."""


def attend(
    q_BKQd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q k' scale + mask) v, (B, K, Q, d), and the log of each softmax's denominator, (B, K, Q).

    Queries of all heads that share a key are one axis. Source: Shazeer, 2019, arXiv:1911.02150; Dao et al.,
    2022, arXiv:2205.14135 (torch's kernel for the CPU, which gives the denominators too).
    """
    if q_BKQd.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q_BKQd, k_BKTd, v_BKTd, attn_mask=mask, scale=scale)
    return explicit(q_BKQd, k_BKTd, v_BKTd, scale, mask)


def explicit(
    q_BKQd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` in plain operations, for any device."""
    scores = (q_BKQd @ k_BKTd.mT).float() * scale
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1).to(v_BKTd.dtype) @ v_BKTd, scores.logsumexp(dim=-1)


def causal(q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, scale: float, window: int | None) -> Tensor:
    """Each position attends to itself and those before it, at most `window` of them: (B, T, H, d)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHd, k_BTKd, v_BTKd))
    n, mask = q.shape[2], None
    if window is not None and n > window:
        at = torch.arange(n, device=q.device)
        behind = at[:, None] - at
        mask = (behind >= 0) & (behind < window)
    made = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return made.transpose(1, 2)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over two sets of keys from attention over each, (..., d), and their log denominators."""
    share = torch.sigmoid(lse - other_lse)[..., None]
    return torch.lerp(other.float(), out.float(), share).to(out.dtype)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` read the prefixes `first:last`, the same number of rows each, in order."""

    start: int
    end: int
    first: int
    last: int


def segments(prefixes: Sequence[int]) -> list[Segment]:
    """Runs of rows that read like numbers of neighbouring prefixes together; `prefixes`: one a row."""
    made: list[Segment] = []
    start = 0
    for prefix, run in itertools.groupby(prefixes):
        n = len(list(run))
        before = made[-1] if made else None
        if before and before.last == prefix and before.end - before.start == n * (before.last - before.first):
            made[-1] = Segment(before.start, start + n, before.first, prefix + 1)
        else:
            made.append(Segment(start, start + n, prefix, prefix + 1))
        start += n
    return made


class Visible:
    """Which keys each row sees at a step: columns are the padded prompt's, then the tokens written."""

    def __init__(self, lengths_R: Tensor, width: int) -> None:
        self.lengths_R, self.width = lengths_R, width
        self._shortest, self._longest = int(lengths_R.min()), int(lengths_R.max())
        self._known: dict[tuple[int | None, int, bool], Tensor] = {}

    def prefix(self, window: int | None, step: int, dtype: torch.dtype) -> Tensor | None:
        """(R, T): 0 where row r sees column t of its prompt, `HIDDEN` elsewhere; None when it sees all."""
        return self._remember(window, step, False, dtype)

    def all(self, window: int | None, step: int, dtype: torch.dtype) -> Tensor | None:
        """The same over prompt and tokens written, (R, T + step + 1)."""
        return self._remember(window, step, True, dtype)

    def _remember(self, window: int | None, step: int, tail: bool, dtype: torch.dtype) -> Tensor | None:
        if window is not None and self._longest + step < window:
            window = None
        if window is None and self._shortest == self.width:
            return None
        key = (window, step if tail or window is not None else 0, tail)
        if key not in self._known:
            self._known = {known: mask for known, mask in self._known.items() if known[1] in (0, step)}
            lowest = torch.finfo(dtype).min
            self._known[key] = self._mask(window, step, tail).clamp_(min=lowest).to(dtype)
        return self._known[key]

    def _mask(self, window: int | None, step: int, tail: bool) -> Tensor:
        lengths_R1 = self.lengths_R[:, None]
        columns_T = torch.arange(self.width + (step + 1 if tail else 0), device=lengths_R1.device)
        own_T = columns_T >= self.width
        positions_RT = torch.where(own_T, columns_T - self.width + lengths_R1, columns_T)
        seen_RT = own_T | (columns_T < lengths_R1)
        if window is not None:
            seen_RT = seen_RT & (positions_RT > lengths_R1 + step - window)
        return torch.zeros(seen_RT.shape, device=seen_RT.device).masked_fill_(~seen_RT, HIDDEN)


def tail_window(window: int | None, step: int) -> int:
    """The first of the tokens written that a row still sees."""
    return 0 if window is None else max(0, math.ceil(step + 1 - window))
