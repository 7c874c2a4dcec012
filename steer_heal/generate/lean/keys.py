"""Keys and values of the rows being written: each row's own, or a prompt's kept once for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steer_heal.generate.lean.attention import Visible, attend, merge, segments, tail_window

Pair = tuple[Tensor, Tensor]
"""Keys and values of prompts at one layer, (N, K, T, d) each, padded on the right."""

CACHE_BYTES = 2**22
"""Copies that take more a layer cost more than one pass over a shared prompt and the joins after it."""


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Prompts as they were read, by layer, and which of them some rows follow.

    `rows`: the rows' numbers in the batch, rising. `of_row`: the prompt each of them follows.
    """

    pairs: dict[int, Pair]
    lengths_N: Tensor
    rows: Sequence[int]
    of_row: Sequence[int]

    @property
    def width(self) -> int:
        return next(iter(self.pairs.values()))[0].shape[2]

    def kept(self, rows: Sequence[int]) -> Prefixes:
        """The same for a batch of these rows, in this order that never falls; one named twice becomes two."""
        of = dict(zip(self.rows, self.of_row, strict=True))
        news = [new for new, row in enumerate(rows) if row in of]
        return Prefixes(self.pairs, self.lengths_N, news, [of[rows[new]] for new in news])


class Keys(Protocol):
    """All rows' keys and values at all layers; a step gives every layer one more column."""

    def attend(
        self, layer: int, step: int, q_RHd: Tensor, k_RKd: Tensor, v_RKd: Tensor, scale: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        """Write the step's column at the layer, and attend to all: (R, H, d)."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order that never falls; one named twice becomes two."""
        ...


def keys(base: Prefixes, steered: Prefixes | None, room: int, n_more: int = 0) -> Keys:
    """Each prompt kept once for all its rows where copies would take too long to read, else copies.

    `base`: prompts without steering, for all rows. `steered`: those of the steered rows, at the layers where
    they differ. `room`: how many tokens may be written. `n_more`: how many rows may come to be beside them.
    What is chosen does not hang on which rows are steered: a row of zeros is summed in one order, whatever
    is beside it.
    """
    n_rows, some = len(base.rows) + n_more, next(iter(base.pairs.values()))[0]
    copied = 2 * n_rows * some[0].numel() * some.element_size()
    shared = n_rows >= 2 * len(base.lengths_N) and copied > CACHE_BYTES
    return (SharedKeys if shared else OwnKeys)(base, steered, room)


class OwnKeys:
    """A buffer for each row: its prompt, then the tokens written."""

    def __init__(self, base: Prefixes, steered: Prefixes | None, room: int) -> None:
        self._width = max(one.width for one in (base, steered) if one)
        parts = [one for one in (base, steered) if one]
        width = self._width + room
        self._layers = {
            layer: [
                _buffer([one for one in parts if layer in one.pairs], layer, side, width) for side in (0, 1)
            ]
            for layer in set().union(*(one.pairs for one in parts))
        }
        self._visible = Visible(base.lengths_N[_index(base.of_row, base.lengths_N)], self._width)

    def attend(
        self, layer: int, step: int, q_RHd: Tensor, k_RKd: Tensor, v_RKd: Tensor, scale: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        keys, values = self._layers[layer]
        end = self._width + step + 1
        keys[:, :, end - 1], values[:, :, end - 1] = k_RKd, v_RKd
        mask_RT = self._visible.all(window, step, q_RHd.dtype)
        mask = None if mask_RT is None else mask_RT[:, None, None]
        q_RKGd = q_RHd.unflatten(1, (k_RKd.shape[1], -1))
        return attend(q_RKGd, keys[:, :, :end], values[:, :, :end], scale, mask)[0].flatten(1, 2)

    def keep(self, rows: Sequence[int]) -> None:
        index = _index(rows, self._visible.lengths_R)
        self._layers = {layer: [states[index] for states in pair] for layer, pair in self._layers.items()}
        self._visible = Visible(self._visible.lengths_R[index], self._width)


class SharedKeys:
    """Each prompt once, read by all its rows in one pass, and the tokens written by each row beside it.

    The unsteered prompts are read for all rows, also where a steered row has a prompt of its own that
    replaces the result: so what a row of zeros gets is summed in one order, whatever is beside it.
    Source of the two-part attention: Juravsky et al., 2024, arXiv:2402.05099.
    """

    def __init__(self, base: Prefixes, steered: Prefixes | None, room: int) -> None:
        self._base, self._steered = _Reading(base), _Reading(steered) if steered else None
        some = next(iter(base.pairs.values()))[0]
        layers = base.pairs.keys() | (steered.pairs.keys() if steered else set())
        self._tails = {
            layer: [some.new_empty(len(base.rows), some.shape[1], room, some.shape[3]) for _ in range(2)]
            for layer in layers
        }

    def attend(
        self, layer: int, step: int, q_RHd: Tensor, k_RKd: Tensor, v_RKd: Tensor, scale: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        keys, values = self._tails[layer]
        keys[:, :, step], values[:, :, step] = k_RKd, v_RKd
        q_RKGd = q_RHd.unflatten(1, (k_RKd.shape[1], -1))
        seen = slice(tail_window(window, step), step + 1)
        own = attend(q_RKGd, keys[:, :, seen], values[:, :, seen], scale)
        return merge(*self._prompts(layer, step, q_RKGd, scale, window), *own).flatten(1, 2)

    def _prompts(
        self, layer: int, step: int, q_RKGd: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        base, steered = self._base, self._steered
        if steered is None or not steered.knows(layer):
            return base.attend(layer, step, q_RKGd, scale, window)
        if len(steered.prefixes.rows) == len(q_RKGd):
            return steered.attend(layer, step, q_RKGd, scale, window)
        out, lse = base.attend(layer, step, q_RKGd, scale, window)
        rows = steered.index
        out[rows], lse[rows] = steered.attend(layer, step, q_RKGd[rows], scale, window)
        return out, lse

    def keep(self, rows: Sequence[int]) -> None:
        index = _index(rows, self._base.prefixes.lengths_N)
        self._tails = {layer: [states[index] for states in pair] for layer, pair in self._tails.items()}
        self._base = _Reading(self._base.prefixes.kept(rows))
        steered = self._steered.prefixes.kept(rows) if self._steered else None
        self._steered = _Reading(steered) if steered and steered.rows else None


class _Reading:
    """Rows' attention to their prompts: those that follow one prompt are queries of one pass."""

    def __init__(self, prefixes: Prefixes) -> None:
        self.prefixes, self._segments = prefixes, segments(prefixes.of_row)
        first, last = prefixes.rows[0], prefixes.rows[-1]
        together = last - first + 1 == len(prefixes.rows)
        self.index = slice(first, last + 1) if together else _index(prefixes.rows, prefixes.lengths_N)
        of = _index(prefixes.of_row, prefixes.lengths_N)
        self._visible = Visible(prefixes.lengths_N[of], prefixes.width)

    def knows(self, layer: int) -> bool:
        return layer in self.prefixes.pairs

    def attend(
        self, layer: int, step: int, q_RKGd: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """(R, K, G, d), and the log denominators (R, K, G)."""
        keys, values = self.prefixes.pairs[layer]
        mask_RT = self._visible.prefix(window, step, q_RKGd.dtype)
        outs, lses = [], []
        for part in self._segments:
            n, rows, held = part.last - part.first, slice(part.start, part.end), slice(part.first, part.last)
            q_ncKGd = q_RKGd[rows].unflatten(0, (n, -1))
            q_nKcGd = q_ncKGd.transpose(1, 2)
            shape = q_nKcGd.shape
            mask = None if mask_RT is None else _spread(mask_RT[rows], n, shape[3])
            out, lse = attend(q_nKcGd.flatten(2, 3), keys[held], values[held], scale, mask)
            outs.append(out.unflatten(2, shape[2:4]).transpose(1, 2).flatten(0, 1))
            lses.append(lse.unflatten(2, shape[2:4]).transpose(1, 2).flatten(0, 1))
        return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs), torch.cat(lses))


def _index(rows: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=like.device)


def _buffer(parts: Sequence[Prefixes], layer: int, side: int, width: int) -> Tensor:
    """(R, K, width, d): each row's prompt, later parts over earlier ones, with zeros behind."""
    parts = [one for one in parts if layer in one.pairs]
    some, n_rows = parts[0].pairs[layer][side], 1 + max(row for one in parts for row in one.rows)
    made = some.new_zeros(n_rows, some.shape[1], width, some.shape[3])
    for one in parts:
        states_NKTd = one.pairs[layer][side]
        made[_index(one.rows, made), :, : one.width] = states_NKTd[_index(one.of_row, made)]
    return made


def _spread(mask_RT: Tensor, n: int, group: int) -> Tensor:
    """(R, T) as (n, 1, rows each * group, T)."""
    return mask_RT.unflatten(0, (n, -1)).repeat_interleave(group, dim=1)[:, None]
