"""Rows that were read, held with their keys and values to read on: thoughts, and what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_heal.generate.lean.attention import HIDDEN, attend
from steer_heal.generate.lean.network import Network
from steer_heal.instrument.trees import Pair
from steer_heal.vectors.steering import Steering


@dataclass(frozen=True, eq=False)
class Piece:
    """What every row reads next: places (R, n), which of it each token sees (n, n), which are asked for."""

    places_Rn: Tensor
    seen_nn: Tensor
    ends_e: Tensor


class Held:
    """Rows side by side: each row's keys, padding up to the longest, then what all read on together."""

    def __init__(
        self, network: Network, lengths_R: Tensor, pairs: dict[int, Pair], steering: Steering
    ) -> None:
        """`pairs`: keys and values by layer, (R, K, T, d); columns beyond the longest row are room to write.
        `steering`: a coefficient row for each row."""
        self._network, self._pairs, self._steering = network, pairs, steering
        self._lengths_R, self._longest = lengths_R, int(lengths_R.max())
        self._end = self._longest
        columns_T = torch.arange(pairs[0][0].shape[2], device=lengths_R.device)
        written_T = columns_T >= self._longest
        self._seen_RT = written_T | (columns_T < lengths_R[:, None])
        self._places_RT = torch.where(written_T, columns_T - self._longest + lengths_R[:, None], columns_T)
        self._tables = network.turns(len(columns_T), pairs[0][0])

    def read(self, ids_Rn: Tensor, n_ends: int) -> Tensor:
        """Every row reads on; the residual behind the last `n_ends` tokens, (R, n_ends, D)."""
        n = ids_Rn.shape[1]
        hidden = self._pass(ids_Rn, list(range(-1, n - 1)), n_ends)
        self._end += n
        return hidden

    def look(self, ids_n: Sequence[int], follows: Sequence[int]) -> Tensor:
        """The residual behind tokens that every row could read next, (R, n, D); none of them is held.

        `follows`: for each token which one of these it comes after, -1 where it comes first.
        """
        ids_1n = torch.tensor(ids_n, device=self._lengths_R.device)
        return self._pass(ids_1n.expand(len(self._lengths_R), -1), follows, len(ids_n))

    def _pass(self, ids_Rn: Tensor, follows: Sequence[int], n_ends: int) -> Tensor:
        network, (n_rows, n) = self._network, ids_Rn.shape
        device = ids_Rn.device
        seen_nn, depth_n = _ancestry(follows, device)
        places_Rn = (self._lengths_R + self._end - self._longest)[:, None] + depth_n
        piece = Piece(places_Rn, seen_nn, torch.arange(n - n_ends, n, device=device))
        turns = {name: turn.at(places_Rn.flatten()) for name, turn in self._tables.items()}
        ends_N = (torch.arange(n_rows, device=device)[:, None] * n + piece.ends_e).flatten()
        masks: dict[tuple[int | None, bool], Tensor | None] = {}
        reach = int(places_Rn.max())
        hidden = network.embed(ids_Rn.flatten())
        for layer, block in enumerate(network.blocks):
            few = layer == len(network.blocks) - 1

            def attention(q: Tensor, k: Tensor, v: Tensor, layer: int = layer, few: bool = few) -> Tensor:
                window, group = network.blocks[layer].window, q.shape[1] // k.shape[1]
                key = (None if window is None or reach < window else window, few and n_ends < n)
                if key not in masks:
                    masks[key] = self._mask(piece, key[1], key[0], group, q.dtype)
                return self._attend(layer, q, k, v, masks[key])

            rows = ends_N if few else None
            hidden = block.forward(hidden, turns[block.rotary], network.head_dim, attention, rows)
            hidden = self._steering.plus(layer, hidden.unflatten(0, (n_rows, -1))).flatten(0, 1)
        return hidden.unflatten(0, (n_rows, -1))

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        keys, values = self._pairs[layer]
        n_rows, heads = keys.shape[:2]
        k, v = (x.unflatten(0, (n_rows, -1)).transpose(1, 2) for x in (k, v))
        end = self._end + k.shape[2]
        keys[:, :, self._end : end], values[:, :, self._end : end] = k, v
        q_RqKGd = q.unflatten(1, (heads, -1)).unflatten(0, (n_rows, -1))
        q_RKXd = q_RqKGd.transpose(1, 2).flatten(2, 3)
        out = attend(q_RKXd, keys[:, :, :end], values[:, :, :end], self._network.blocks[layer].scale, mask)[0]
        return out.unflatten(2, (-1, q_RqKGd.shape[3])).transpose(1, 2).flatten(0, 1).flatten(1)

    def _mask(
        self, piece: Piece, few: bool, window: int | None, group: int, dtype: torch.dtype
    ) -> Tensor | None:
        """(R, 1, queries * group, T): 0 where a query sees a key, else `HIDDEN`; None when all see all."""
        at = piece.ends_e if few else slice(None)
        places_Rq, seen_qn = piece.places_Rn[:, at], piece.seen_nn[at]
        held_RT = self._seen_RT[:, : self._end]
        if window is None and bool(seen_qn.all()) and bool(held_RT.all()):
            return None
        n_rows, n = places_Rq.shape
        seen = torch.cat([held_RT[:, None].expand(-1, n, -1), seen_qn.expand(n_rows, -1, -1)], dim=2)
        if window is not None:
            places_RT = torch.cat([self._places_RT[:, : self._end], piece.places_Rn], dim=1)
            seen = seen & (places_Rq[..., None] - places_RT[:, None] < window)
        mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, HIDDEN)
        return mask.clamp_(min=torch.finfo(dtype).min).to(dtype).repeat_interleave(group, dim=1)[:, None]


def _ancestry(follows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tokens each one comes after, itself among them, (n, n); and how many others those are, (n,)."""
    seen_nn = torch.eye(len(follows), dtype=torch.bool)
    for token, before in enumerate(follows):
        if before >= 0:
            seen_nn[token] |= seen_nn[before]
    return seen_nn.to(device), (seen_nn.sum(dim=1) - 1).to(device)
