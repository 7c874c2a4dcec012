"""Rows side by side that read on together: each row's own keys and values, then what all read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_heal.forward.attention import KeyValues, additive, attend, merge, visible
from steer_heal.forward.network import Network
from steer_heal.forward.prefix_batch import Read
from steer_heal.forward.shared_prompts import Masks, SharedPrompts
from steer_heal.vectors.steering import Steering


class Continuation:
    """Rows after what they have read: padding up to the longest, then room for what all read on together."""

    def __init__(
        self, network: Network, pairs: dict[int, KeyValues], lengths_R: Tensor, steering: Steering, room: int,
        shared: SharedPrompts | None = None,
    ) -> None:  # fmt: skip
        """`pairs`: by layer the rows' own keys and values, (R, K, T, d), the last `room` columns free for
        what follows. `steering`: a coefficient row for each row. `shared`: what lies before a row's own."""
        self._network, self._pairs, self._steering, self.shared = network, pairs, steering, shared
        self._lengths_R = lengths_R
        keys = next(iter(pairs.values()))[0]
        self._n_text = self._end = keys.shape[2] - room
        self._tables = network.rotary(int(lengths_R.max()) + room, keys)
        self._place_columns()

    def _place_columns(self) -> None:
        """Each column's place in its row's text, and whether it is text."""
        lengths_R1 = self._lengths_R[:, None]
        columns_T = torch.arange(self._pairs[0][0].shape[2], device=lengths_R1.device)
        written_T = columns_T >= self._n_text
        self._text_RT = written_T | (columns_T < lengths_R1)
        self._places_RT = torch.where(written_T, columns_T - self._n_text + lengths_R1, columns_T)
        self._padded = bool((lengths_R1 < self._n_text).any())

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one named twice becomes two."""
        index = torch.tensor(rows, device=self._lengths_R.device)
        self._pairs = {layer: (keys[index], values[index]) for layer, (keys, values) in self._pairs.items()}
        self._steering.keep(index)
        if self.shared:
            self.shared.keep(rows)
        self._lengths_R = self._lengths_R[index]
        self._place_columns()

    def read(self, ids_Rn: Tensor, n_ends: int) -> Tensor:
        """Every row reads on; the residual behind the last `n_ends` tokens, (R, n_ends, D)."""
        n = ids_Rn.shape[1]
        hidden_RnD = self._pass(ids_Rn, list(range(-1, n - 1)), n_ends)
        self._end += n
        return hidden_RnD

    def look(self, ids_n: Sequence[int], follows: Sequence[int]) -> Tensor:
        """The residual behind tokens that every row could read next, (R, n, D); none of them is held.

        `follows`: for each token which one of these it comes after, -1 where it comes first.
        """
        ids_1n = torch.tensor(ids_n, device=self._lengths_R.device)
        return self._pass(ids_1n.expand(len(self._lengths_R), -1), follows, len(ids_n))

    def _pass(self, ids_Rn: Tensor, follows: Sequence[int], n_ends: int) -> Tensor:
        network, (n_rows, n), device = self._network, ids_Rn.shape, ids_Rn.device
        before_nn, depth_n = _ancestry(follows, device)
        places_Rn = (self._lengths_R + self._end - self._n_text)[:, None] + depth_n
        reach = int(places_Rn.max())
        masks: Masks = {}
        steering = self._steering.at(self._end - self._n_text)

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            block, group = network.blocks[layer], q.shape[1] // k.shape[1]
            window = None if block.window is None or reach < block.window else block.window
            n_asked = len(q) // n_rows
            if (window, n_asked) not in masks:
                masks[window, n_asked] = self._mask(places_Rn, before_nn, n_asked, window, group, q.dtype)
            q_RKXd = q.unflatten(1, (k.shape[1], -1)).unflatten(0, (n_rows, -1)).transpose(1, 2).flatten(2, 3)
            made = self._attend(layer, q_RKXd, k, v, block.scale, masks[window, n_asked])
            if self.shared:
                asked = (layer, q_RKXd, places_Rn[:, -n_asked:], block.scale, window, masks)
                made = merge(*self.shared.attend(*asked), *made), None
            return made[0].unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1).flatten(1)

        def behind(layer: int, hidden: Tensor) -> Tensor:
            return steering.plus(layer, hidden.unflatten(0, (n_rows, -1))).flatten(0, 1)

        ends_M = None
        if n_ends < n:
            ends = torch.arange(n - n_ends, n, device=device)
            ends_M = (torch.arange(n_rows, device=device)[:, None] * n + ends).flatten()
        tables = {name: table.at(places_Rn.flatten()) for name, table in self._tables.items()}
        hidden_ND = network.embed(ids_Rn.flatten())
        layers = range(len(network.blocks))
        return network.through(hidden_ND, tables, layers, attention, ends_M=ends_M, behind=behind).unflatten(
            0, (n_rows, -1)
        )

    def _attend(
        self, layer: int, q_RKXd: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' columns, and attend to all of the rows' own."""
        keys, values = self._pairs[layer]
        k, v = (x.unflatten(0, (len(keys), -1)).transpose(1, 2) for x in (k, v))
        end = self._end + k.shape[2]
        keys[:, :, self._end : end], values[:, :, self._end : end] = k, v
        return attend(q_RKXd, keys[:, :, :end], values[:, :, :end], scale, mask)

    def _mask(
        self, places_Rn: Tensor, before_nn: Tensor, n_asked: int, window: int | None, group: int,
        dtype: torch.dtype,
    ) -> Tensor | None:  # fmt: skip
        """Which keys the last `n_asked` tokens see: all text before them, and what they come after."""
        if window is None and places_Rn.shape[1] == 1 and not self._padded:
            return None
        places_RT = torch.cat([self._places_RT[:, : self._end], places_Rn], dim=1)
        text_RT = torch.cat([self._text_RT[:, : self._end], torch.ones_like(places_Rn, dtype=torch.bool)], 1)
        sees_RQT = visible(places_Rn[:, -n_asked:], places_RT, text_RT, window)
        sees_RQT[:, :, self._end :] &= before_nn[-n_asked:]
        return additive(sees_RQT, dtype, group)


def side_by_side(rows: Sequence[Sequence[Read]], room: int) -> tuple[dict[int, KeyValues], Tensor]:
    """By layer the rows' keys and values, (R, K, T, d), from the pieces of text that each has read, end to
    end, with `room` columns behind the longest; and the rows' lengths. Zeros beyond a row's text."""
    lengths = [sum(len(piece.pairs[0][0]) for piece in row) for row in rows]
    width, made = max(lengths) + room, {}
    for layer, (keys, _) in rows[0][-1].pairs.items():
        _, heads, size = keys.shape
        both = keys.new_zeros(2, len(rows), heads, width, size)
        for place, row in zip(both.unbind(1), rows, strict=True):
            start = 0
            for piece in row:
                for side, states_TKd in zip(place, piece.pairs[layer], strict=True):
                    side[:, start : start + len(states_TKd)].copy_(states_TKd.transpose(0, 1))
                start += len(piece.pairs[layer][0])
        made[layer] = (both[0], both[1])
    return made, torch.tensor(lengths, device=made[0][0].device)


def room_alone(reads: Sequence[Read], n_layers: int, room: int) -> tuple[dict[int, KeyValues], Tensor]:
    """The same for rows that keep their text elsewhere."""
    _, heads, size = reads[0].pairs[0][0].shape
    made = {
        layer: (keys[0], keys[1])
        for layer in range(n_layers)
        for keys in (reads[0].pairs[0][0].new_empty(2, len(reads), heads, room, size),)
    }
    return made, torch.tensor([len(read.pairs[0][0]) for read in reads], device=made[0][0].device)


def _ancestry(follows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tokens each one comes after, itself among them, (n, n); and how many others those are, (n,)."""
    before_nn = torch.eye(len(follows), dtype=torch.bool)
    for token, before in enumerate(follows):
        if before >= 0:
            before_nn[token] |= before_nn[before]
    return before_nn.to(device), (before_nn.sum(dim=1) - 1).to(device)
