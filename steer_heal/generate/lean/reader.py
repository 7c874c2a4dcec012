"""Prompts and then one token a step, through a `Network`: the lean counterpart of `plain.PlainReader`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_heal.generate.lean.keys import Pair, Prefixes, keys
from steer_heal.generate.lean.network import Block, Network
from steer_heal.generate.lean.prompts import Read, read, run, stack
from steer_heal.generate.rows import Lane
from steer_heal.generate.store import PrefixStore
from steer_heal.models import LanguageModel
from steer_heal.vectors.steering import Steering

Prompt = tuple[int, ...]


class LeanReader:
    """The lanes of a batch after what they have read so far.

    Inside, lanes are sorted by prompt: neighbours share a prompt's keys and values. Up to the first steered
    block a prompt's are the same for all its lanes; above it they are the same for all its unsteered lanes,
    and for all lanes of one steering.
    """

    def __init__(
        self,
        lm: LanguageModel,
        lanes: Sequence[Lane],
        directions_LD: Tensor,
        room: int,
        store: PrefixStore | None,
    ) -> None:
        self._network, self._device, self._step = Network(lm), lm.device, 0
        prompts = list(dict.fromkeys(lane.prompt_ids for lane in lanes))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        self._order = sorted(range(len(lanes)), key=lambda i: place[lanes[i].prompt_ids])
        ordered = [lanes[i] for i in self._order]
        self._steering = Steering(directions_LD, torch.stack([lane.coefficients_L for lane in ordered]))
        n_layers, steered = (
            len(self._network.blocks),
            [row for row, lane in enumerate(ordered) if lane.steered],
        )
        first = self._steering.layers[0] if steered else n_layers - 1
        depth = n_layers if len(steered) < len(lanes) else first + 1
        reads = self._reads(prompts, first, depth, store)
        lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        of_row = [place[lane.prompt_ids] for lane in ordered]
        base, apart = Prefixes(_pairs(reads, depth), lengths_P, range(len(ordered)), of_row), None
        hidden_BD = torch.cat([one.residuals[depth - 1][-1:] for one in reads])[of_row]
        if steered:
            apart, ends_SD = self._read_steered(reads, ordered, steered, base, directions_LD)
            hidden_BD[steered] = ends_SD
        self.keys = keys(base, apart, room, n_more=sum(lane.n_more for lane in lanes))
        self._positions_B = lengths_P[torch.tensor(of_row, device=self._device)]
        last = int(self._positions_B.max()) + room
        self._turns = self._network.turns(last, hidden_BD)
        self._show(hidden_BD)

    def _reads(self, prompts: list[Prompt], first: int, depth: int, store: PrefixStore | None) -> list[Read]:
        """Every prompt read without steering; those the store holds are not read again."""
        n_layers = len(self._network.blocks)
        if store is None:
            return read(self._network, prompts, depth, {first, depth - 1}, self._device)
        return store.get(
            "lean", prompts, {first, n_layers - 1}, n_layers,
            lambda some, wanted: read(self._network, some, n_layers, wanted, self._device),
        )  # fmt: skip

    def _read_steered(
        self,
        reads: list[Read],
        ordered: Sequence[Lane],
        rows: list[int],
        base: Prefixes,
        directions_LD: Tensor,
    ) -> tuple[Prefixes | None, Tensor]:
        """The steered lanes, `rows`, from the first steered block on: their prompts' keys (none where no
        block is left), and the residual behind the last one, (S, D)."""
        first = self._steering.layers[0]
        variants: dict[tuple[Prompt, bytes], int] = {}
        of_row = [variants.setdefault(ordered[row].key[:2], len(variants)) for row in rows]
        leaders = [rows[of_row.index(number)] for number in range(len(variants))]
        steering = Steering(directions_LD, torch.stack([ordered[row].coefficients_L for row in leaders]))
        of = [base.of_row[row] for row in leaders]
        hidden_VTD = steering.plus(first, stack([one.residuals[first] for one in reads], 0)[of])
        above = range(first + 1, len(self._network.blocks))
        if not above:
            return None, hidden_VTD[:, 0][of_row]
        lengths_V = base.lengths_N[of]
        passed = run(self._network, hidden_VTD, lengths_V, above, {above[-1]}, steering)
        return Prefixes(passed.pairs, lengths_V, rows, of_row), passed.residuals[above[-1]][:, 0][of_row]

    def keep(self, kept: Sequence[int]) -> None:
        """The lanes that stay, by their numbers here and in their new order; one named twice becomes two."""
        news: dict[int, list[int]] = {}
        for new, lane in enumerate(kept):
            news.setdefault(lane, []).append(new)
        stays = [(row, new) for row, lane in enumerate(self._order) for new in news.get(lane, ())]
        rows, self._order = [row for row, _ in stays], [new for _, new in stays]
        self.keys.keep(rows)
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

            def attend(q: Tensor, k: Tensor, v: Tensor, layer: int = layer, block: Block = block) -> Tensor:
                return self.keys.attend(layer, self._step, q, k, v, block.scale, block.window).flatten(1)

            hidden_BD = block.forward(hidden_BD, turns[block.rotary], network.head_dim, attend)
            if layer in steered:
                hidden_BD = self._steering.plus(layer, hidden_BD[:, None])[:, 0]
        self._step += 1
        self._positions_B = self._positions_B + 1
        self._show(hidden_BD)

    def _show(self, hidden_BD: Tensor) -> None:
        rows = sorted(range(len(self._order)), key=self._order.__getitem__)
        if rows != list(range(len(rows))):
            hidden_BD = hidden_BD[torch.tensor(rows, device=self._device)]
        self.logits_BV = self._network.logits(hidden_BD)


def _pairs(reads: Sequence[Read], depth: int) -> dict[int, Pair]:
    """The prompts' keys and values at the first `depth` layers, padded on the right."""
    return {
        layer: (
            stack([one.pairs[layer][0] for one in reads], 1),
            stack([one.pairs[layer][1] for one in reads], 1),
        )
        for layer in range(depth)
    }
