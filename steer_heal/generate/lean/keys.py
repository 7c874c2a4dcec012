"""Keys and values of the rows being written: each row's own, or a prompt's kept once for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .attention import Visible, attend, merge, segments, tail_window


class Keys(Protocol):
    """Some rows' keys and values at some layers; a step gives every layer one more column."""

    def attend(
        self, layer: int, step: int, q_RHd: Tensor, k_RKd: Tensor, v_RKd: Tensor, scale: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        """Write the step's column at the layer, and attend to all: (R, H, d)."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order that never falls; one named twice becomes two."""
        ...


Prefix = tuple[Tensor, Tensor]
"""Keys and values of prompts at one layer, (N, K, T, d) each, padded on the right."""


def keys(
    prefixes: dict[int, Prefix], of_row: Sequence[int], lengths_N: Tensor, room: int, n_more: int = 0
) -> Keys:
    """Kept once where at least two rows in the mean read a prompt, else a copy for each row.

    `prefixes`: by layer. `of_row`: which prompt each row follows. `room`: how many tokens may be written.
    `n_more`: how many rows may come to be beside them.
    """
    shared = len(of_row) + n_more >= 2 * len(set(of_row))
    return (SharedKeys if shared else OwnKeys)(prefixes, of_row, lengths_N, room)


class OwnKeys:
    """A buffer for each row: its prompt, then the tokens written."""

    def __init__(
        self, prefixes: dict[int, Prefix], of_row: Sequence[int], lengths_N: Tensor, room: int
    ) -> None:
        index = torch.tensor(of_row, device=lengths_N.device)
        self._layers = {
            layer: [_with_room(states, index, room) for states in pair] for layer, pair in prefixes.items()
        }
        self._width = next(iter(prefixes.values()))[0].shape[2]
        self._visible = Visible(lengths_N[index], self._width)

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
        index = torch.tensor(rows, dtype=torch.long, device=self._visible.lengths_R.device)
        self._layers = {layer: [states[index] for states in pair] for layer, pair in self._layers.items()}
        self._visible = Visible(self._visible.lengths_R[index], self._width)


class SharedKeys:
    """Each prompt once, read by all its rows in one pass, and the tokens written by each row beside it.

    Source of the two-part attention: Juravsky et al., 2024, arXiv:2402.05099.
    """

    def __init__(
        self, prefixes: dict[int, Prefix], of_row: Sequence[int], lengths_N: Tensor, room: int
    ) -> None:
        self._prefixes, self._of_row = prefixes, list(of_row)
        some = next(iter(prefixes.values()))[0]
        _, heads, self._width, head_dim = some.shape
        self._tails = {
            layer: [some.new_empty(len(of_row), heads, room, head_dim) for _ in range(2)]
            for layer in prefixes
        }
        self._lengths_N = lengths_N
        self._arrange()

    def attend(
        self, layer: int, step: int, q_RHd: Tensor, k_RKd: Tensor, v_RKd: Tensor, scale: float,
        window: int | None,
    ) -> Tensor:  # fmt: skip
        keys, values = self._tails[layer]
        keys[:, :, step], values[:, :, step] = k_RKd, v_RKd
        q_RKGd = q_RHd.unflatten(1, (k_RKd.shape[1], -1))
        first = tail_window(window, step)
        seen = slice(first, step + 1)
        own = attend(q_RKGd, keys[:, :, seen], values[:, :, seen], scale)
        return merge(*self._prompt(layer, step, q_RKGd, scale, window), *own).flatten(1, 2)

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self._lengths_N.device)
        self._tails = {layer: [states[index] for states in pair] for layer, pair in self._tails.items()}
        self._of_row = [self._of_row[row] for row in rows]
        self._arrange()

    def _arrange(self) -> None:
        self._segments = segments(self._of_row)
        index = torch.tensor(self._of_row, device=self._lengths_N.device)
        self._visible = Visible(self._lengths_N[index], self._width)

    def _prompt(
        self, layer: int, step: int, q_RKGd: Tensor, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._prefixes[layer]
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


def _with_room(states_NKTd: Tensor, index: Tensor, room: int) -> Tensor:
    _, heads, width, head_dim = states_NKTd.shape
    made = states_NKTd.new_empty(len(index), heads, width + room, head_dim)
    made[:, :, :width] = states_NKTd[index]
    return made


def _spread(mask_RT: Tensor, n: int, group: int) -> Tensor:
    """(R, T) as (n, 1, rows each * group, T)."""
    return mask_RT.unflatten(0, (n, -1)).repeat_interleave(group, dim=1)[:, None]
