"""Prompts and then one token a step, through a `Network`: the lean counterpart of `plain.PlainReader`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models import LanguageModel
from ...steering import Steering
from ..rows import Lane
from ..store import PrefixStore
from .keys import Keys, keys
from .network import Network
from .prompts import Read, read, run, stack

Prompt = tuple[int, ...]


class LeanReader:
    """The lanes of a batch after what they have read so far.

    Inside, unsteered lanes come before steered ones, each sorted by prompt: neighbours share a prompt's keys
    and values. Up to the first steered block a prompt's are the same for all its lanes; above it they are the
    same for all its unsteered lanes, and for all lanes of one steering.
    """

    def __init__(
        self,
        lm: LanguageModel,
        lanes: Sequence[Lane],
        directions_LD: Tensor,
        room: int,
        store: PrefixStore | None,
    ) -> None:
        self._network, self._device = Network(lm), lm.device
        prompts = list(dict.fromkeys(lane.prompt_ids for lane in lanes))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        variants = {lane.key[:2]: lane for lane in lanes if lane.steered}
        steered = sorted(variants.values(), key=lambda lane: place[lane.prompt_ids])
        number = {lane.key[:2]: index for index, lane in enumerate(steered)}
        order = sorted(
            range(len(lanes)),
            key=lambda i: (lanes[i].steered, place[lanes[i].prompt_ids], number.get(lanes[i].key[:2], 0)),
        )
        self._order, self._step = order, 0
        self._steering = Steering(directions_LD, torch.stack([lanes[i].coefficients_L for i in order]))
        first = self._steering.layers[0] if steered else len(self._network.blocks) - 1
        n_base = len(lanes) - sum(lane.steered for lane in lanes)
        reads = self._reads(prompts, first, n_base > 0, store)
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        rows = [place[lanes[i].prompt_ids] for i in order]
        variant_rows = [number[lanes[i].key[:2]] for i in order[n_base:]]
        more = sum(lane.n_more for lane in lanes)
        self._low = keys(_prefixes(reads, range(first + 1)), rows, lengths_P, room, more)
        self._first, self._n_base = first, n_base
        self._base: Keys | None = None
        self._steered: Keys | None = None
        above = range(first + 1, len(self._network.blocks))
        ends = []
        if n_base:
            ends.append(_ends(reads, len(self._network.blocks) - 1)[rows[:n_base]])
            if above:
                self._base = keys(_prefixes(reads, above), rows[:n_base], lengths_P, room, more)
        if steered:
            ends.append(self._read_steered(reads, steered, place, directions_LD, above, room, variant_rows))
        lengths_B = lengths_P[torch.tensor(rows, device=self._device)]
        self._positions_B = lengths_B
        hidden_BD = torch.cat(ends)
        last = int(lengths_B.max()) + room
        self._turns = self._network.turns(torch.arange(last, device=self._device), hidden_BD)
        self._show(hidden_BD)

    def _reads(self, prompts: list[Prompt], first: int, base: bool, store: PrefixStore | None) -> list[Read]:
        """Every prompt read without steering; those the store holds are not read again."""
        n_layers = len(self._network.blocks)
        if store is None:
            depth, wanted = (n_layers, {first, n_layers - 1}) if base else (first + 1, {first})
            return read(self._network, prompts, depth, wanted, self._device)
        return store.get(
            "lean", prompts, {first, n_layers - 1}, n_layers,
            lambda some, wanted: read(self._network, some, n_layers, wanted, self._device),
        )  # fmt: skip

    def _read_steered(
        self, reads: list[Read], steered: list[Lane], place: dict[Prompt, int], directions_LD: Tensor,
        above: range, room: int, variant_rows: list[int],
    ) -> Tensor:  # fmt: skip
        """The steered lanes from the first steered block on; the residual behind the last one, (B, D)."""
        of = torch.tensor([place[lane.prompt_ids] for lane in steered], device=self._device)
        matrix_VL = torch.stack([lane.coefficients_L for lane in steered])
        steering = Steering(directions_LD, matrix_VL)
        hidden_VTD = stack([one.residuals[self._first] for one in reads], 0)[of]
        hidden_VTD = steering.plus(self._first, hidden_VTD)
        lengths_V = torch.tensor([len(lane.prompt_ids) for lane in steered], device=self._device)
        if above:
            passed = run(self._network, hidden_VTD, lengths_V, above, {above[-1]}, steering)
            self._steered = keys(passed.pairs, variant_rows, lengths_V, room)
            hidden_VTD = passed.residuals[above[-1]]
        return hidden_VTD[:, 0][torch.tensor(variant_rows, device=self._device)]

    def keep(self, kept: Sequence[int]) -> None:
        """The lanes that stay, by their numbers here and in their new order; one named twice becomes two."""
        news: dict[int, list[int]] = {}
        for new, lane in enumerate(kept):
            news.setdefault(lane, []).append(new)
        stays = [(row, new) for row, lane in enumerate(self._order) for new in news.get(lane, ())]
        rows, self._order = [row for row, _ in stays], [new for _, new in stays]
        n_base = sum(row < self._n_base for row in rows)
        self._low.keep(rows)
        self._base = _kept(self._base, rows[:n_base])
        self._steered = _kept(self._steered, [row - self._n_base for row in rows[n_base:]])
        self._n_base = n_base
        index = torch.tensor(rows, device=self._device)
        self._steering.keep(index)
        self._positions_B = self._positions_B[index]

    def advance(self, ids: Sequence[int]) -> None:
        """Read one token a lane; `logits_BV` are then those of the next."""
        network = self._network
        ids_B = torch.tensor([ids[lane] for lane in self._order], device=self._device)
        turns = {name: turn.at(self._positions_B) for name, turn in self._turns.items()}
        hidden_BD = network.embed(ids_B)
        steered = set(self._steering.layers)
        for layer, block in enumerate(network.blocks):

            def attention(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                return self._attend(layer, q, k, v).flatten(1)

            hidden_BD = block.forward(hidden_BD, turns[block.rotary], network.head_dim, attention)
            if layer in steered:
                hidden_BD = self._steering.plus(layer, hidden_BD[:, None])[:, 0]
        self._step += 1
        self._positions_B = self._positions_B + 1
        self._show(hidden_BD)

    def _attend(self, layer: int, q_BHd: Tensor, k_BKd: Tensor, v_BKd: Tensor) -> Tensor:
        block, n = self._network.blocks[layer], self._n_base
        how = (block.scale, block.window)
        if layer <= self._first:
            return self._low.attend(layer, self._step, q_BHd, k_BKd, v_BKd, *how)
        outs = []
        if self._base is not None:
            outs.append(self._base.attend(layer, self._step, q_BHd[:n], k_BKd[:n], v_BKd[:n], *how))
        if self._steered is not None:
            outs.append(self._steered.attend(layer, self._step, q_BHd[n:], k_BKd[n:], v_BKd[n:], *how))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _show(self, hidden_BD: Tensor) -> None:
        rows = sorted(range(len(self._order)), key=self._order.__getitem__)
        if rows != list(range(len(rows))):
            hidden_BD = hidden_BD[torch.tensor(rows, device=self._device)]
        self.logits_BV = self._network.logits(hidden_BD)


def _kept(some: Keys | None, rows: Sequence[int]) -> Keys | None:
    if some is None or not rows:
        return None
    some.keep(rows)
    return some


def _prefixes(reads: Sequence[Read], layers: range) -> dict[int, tuple[Tensor, Tensor]]:
    return {
        layer: (
            stack([one.pairs[layer][0] for one in reads], 1),
            stack([one.pairs[layer][1] for one in reads], 1),
        )
        for layer in layers
    }


def _ends(reads: Sequence[Read], layer: int) -> Tensor:
    """The residual behind the last block at each prompt's end, (P, D)."""
    return torch.cat([one.residuals[layer] for one in reads])
