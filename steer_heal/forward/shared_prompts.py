"""Prompts kept once for all rows that go on from them, where a copy for each row would take too long to read.

Source of attention in two parts, the prompt's and each row's own: Juravsky et al., 2024, arXiv:2402.05099.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steer_heal.forward.attention import KeyValues, additive, attend, visible
from steer_heal.forward.prefix_batch import Read

CACHE_BYTES = 2**22
"""Copies that take more a layer cost more than one pass over a shared prompt and the joins after it."""

Masks = dict[object, Tensor | None]
"""What the layers of one pass have in common."""


def worth_sharing(n_rows: int, prompts: Sequence[Read]) -> bool:
    """Whether rows of these prompts are better off with the prompts than with copies.

    It does not hang on which rows are steered: a row of zeros is summed in one order, whatever is beside it.
    """
    keys = max((read.pairs[0][0] for read in prompts), key=len)
    return n_rows >= 2 * len(prompts) and 2 * n_rows * keys.numel() * keys.element_size() > CACHE_BYTES


class SharedPrompts:
    """The prompts without steering, for all rows, and as the steered rows read them, where that differs.

    The unsteered ones are read for all rows, also where a steered row has a prompt of its own that replaces
    the result: so what a row of zeros gets is summed in one order, whatever is beside it.
    """

    def __init__(
        self,
        base: Sequence[Read],
        base_of_row: Sequence[int],
        steered: Sequence[Read],
        of_row: Sequence[int | None],
    ) -> None:
        """`of_row`: which of `steered` a row goes on from, None where it is not steered."""
        self._base = _Prompts(base, base_of_row)
        self._steered = _Prompts(steered, of_row) if steered else None

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one named twice becomes two."""
        self._base.keep(rows)
        if self._steered:
            self._steered.keep(rows)

    def attend(
        self, layer: int, q_RKXd: Tensor, places_Rn: Tensor, scale: float, window: int | None, masks: Masks
    ) -> tuple[Tensor, Tensor]:
        """Rows' attention to their prompts, (R, K, X, d), and the log denominators (R, K, X).

        X: for each of a row's n tokens the heads that share keys. `places_Rn`: the tokens' places.
        """
        asked = (layer, q_RKXd, places_Rn, scale, window, masks)
        steered = self._steered if self._steered and layer in self._steered.pairs else None
        if steered and len(steered.rows) == len(q_RKXd):
            return steered.in_order(*steered.attend(*asked))
        out, lse = self._base.in_order(*self._base.attend(*asked))
        if steered and steered.rows:
            out[steered.index], lse[steered.index] = steered.attend(*asked)
        return out, lse


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows `start:end` go on from the prompts `first:last`, the same number of rows each, in order."""

    start: int
    end: int
    first: int
    last: int


def segments(prompts: Sequence[int]) -> list[Segment]:
    """Runs of rows that go on from like numbers of neighbouring prompts together; `prompts`: one a row."""
    made: list[Segment] = []
    start = 0
    for prompt, run in itertools.groupby(prompts):
        n = len(list(run))
        before = made[-1] if made else None
        if before and before.last == prompt and before.end - before.start == n * (before.last - before.first):
            made[-1] = Segment(before.start, start + n, before.first, prompt + 1)
        else:
            made.append(Segment(start, start + n, prompt, prompt + 1))
        start += n
    return made


class _Prompts:
    """Some prompts side by side, and which rows go on from each: those of one are queries of one pass."""

    def __init__(self, reads: Sequence[Read], of_row: Sequence[int | None]) -> None:
        layers = [layer for layer in reads[0].pairs if all(layer in read.pairs for read in reads)]
        self.pairs = {layer: _stacked([read.pairs[layer] for read in reads]) for layer in layers}
        some = next(iter(self.pairs.values()))[0]
        self._lengths_N = torch.tensor([len(read.pairs[layers[0]][0]) for read in reads], device=some.device)
        self._columns_1T = torch.arange(some.shape[2], device=some.device)[None]
        self._go_on(of_row)

    def _go_on(self, of_row: Sequence[int | None]) -> None:
        self._of_row = of_row
        known = sorted((prompt, row) for row, prompt in enumerate(of_row) if prompt is not None)
        self.rows = [row for _, row in known]
        self._segments = segments([prompt for prompt, _ in known])
        self.index = torch.tensor(self.rows, dtype=torch.long, device=self._lengths_N.device)
        self._back = self.index.argsort()
        self._in_order = self.rows == list(range(len(of_row)))
        self._lengths_R = self._lengths_N[[prompt for prompt, _ in known]]
        self._padded = bool((self._lengths_R < self._columns_1T.shape[1]).any())

    def keep(self, rows: Sequence[int]) -> None:
        self._go_on([self._of_row[row] for row in rows])

    def attend(
        self, layer: int, q_RKXd: Tensor, places_Rn: Tensor, scale: float, window: int | None, masks: Masks
    ) -> tuple[Tensor, Tensor]:
        """As `SharedPrompts.attend`, of the rows that go on from these prompts, in the order of `index`."""
        keys, values = self.pairs[layer]
        if not self._in_order:
            q_RKXd = q_RKXd[self.index]
        n_heads = q_RKXd.shape[2] // places_Rn.shape[1]
        key = (self, window, places_Rn.shape[1])
        if key not in masks:
            masks[key] = self._mask(places_Rn, window, n_heads, q_RKXd.dtype)
        mask = masks[key]
        made: list[tuple[Tensor, Tensor]] = []
        for part in self._segments:
            rows, prompts = slice(part.start, part.end), slice(part.first, part.last)
            n = part.last - part.first
            q_nKcXd = q_RKXd[rows].unflatten(0, (n, -1)).transpose(1, 2)
            some = None if mask is None else mask[rows].unflatten(0, (n, -1)).transpose(1, 2).flatten(2, 3)
            out, lse = attend(q_nKcXd.flatten(2, 3), keys[prompts], values[prompts], scale, some)
            shape = q_nKcXd.shape[2:4]
            out, lse = (x.unflatten(2, shape).transpose(1, 2).flatten(0, 1) for x in (out, lse))
            made.append((out, lse))
        if len(made) == 1:
            return made[0]
        return torch.cat([out for out, _ in made]), torch.cat([lse for _, lse in made])

    def in_order(self, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs to all rows, in the rows' own order."""
        return (out, lse) if self._in_order else (out[self._back], lse[self._back])

    def _mask(self, places_Rn: Tensor, window: int | None, group: int, dtype: torch.dtype) -> Tensor | None:
        """(R, 1, X, T), or None where every row sees its whole prompt."""
        if window is None and not self._padded:
            return None
        places_Rn = places_Rn if self._in_order else places_Rn[self.index]
        text_RT = self._columns_1T < self._lengths_R[:, None]
        return additive(visible(places_Rn, self._columns_1T, text_RT, window), dtype, group)


def _stacked(pairs: Sequence[KeyValues]) -> KeyValues:
    """Keys and values of some prompts as one, (N, K, T, d) each, padded; one alone is not copied."""
    if len(pairs) == 1:
        return pairs[0][0][None].transpose(1, 2), pairs[0][1][None].transpose(1, 2)
    keys, values = (
        pad_sequence(list(states), batch_first=True).transpose(1, 2) for states in zip(*pairs, strict=True)
    )
    return keys, values
