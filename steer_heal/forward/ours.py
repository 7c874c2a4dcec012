"""The known architectures by our own blocks: what rows have in common is read once.

Prompts are read once for all rows that have them; steered rows share the blocks up to the first steered one,
doses likewise; rows that begin alike share their beginning.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from steer_heal.forward.continuation import Continuation, room_alone, side_by_side
from steer_heal.forward.network import Network
from steer_heal.forward.prefix_batch import Ids, Pass, PrefixBatch, Read, Tree, chunks, tree
from steer_heal.forward.rows import Asked, Key, Rows, keys, picked
from steer_heal.forward.shared_prompts import SharedPrompts, worth_sharing
from steer_heal.forward.store import PrefixStore
from steer_heal.models import LanguageModel
from steer_heal.records import Stopped
from steer_heal.vectors.steering import Directions, Looks, of_prompt, steering_of

T = TypeVar("T")

TOGETHER = 16
"""Rows of a group each that are read as one tree, for the template's tokens that they begin with."""


class OurRows(Rows):
    """The residual behind each row's last tokens, and its keys and values where it may read on."""

    def __init__(self, network: Network, ends_BnD: Tensor, held: Continuation | None) -> None:
        self._network, self._ends_BnD, self.held = network, ends_BnD, held
        self._next_BV: Tensor | None = None

    @property
    def logits_BV(self) -> Tensor:
        if self._next_BV is None:
            self._next_BV = self._network.logits(self._ends_BnD[:, -1])
        return self._next_BV

    def read(self, ids_Bn: Tensor, n_ends: int = 1) -> None:
        assert self.held is not None
        self._ends_BnD, self._next_BV = self.held.read(ids_Bn, n_ends), None

    def keep(self, kept: Sequence[int]) -> None:
        assert self.held is not None
        self.held.keep(kept)
        self._ends_BnD, self._next_BV = self._ends_BnD[list(kept)], None

    def logits(self, rows: slice) -> Tensor:
        ends_BnD = self._ends_BnD[rows]
        return self._network.logits(ends_BnD.flatten(0, 1)).unflatten(0, ends_BnD.shape[:2])

    def _further(self, words: Sequence[Sequence[int]]) -> Tensor | int:
        ids, follows, columns, wanted = [], [], [], []
        for column, word in enumerate(words):
            for place, token in enumerate(word[:-1]):
                follows.append(len(ids) - 1 if place else -1)
                ids.append(token)
                columns.append(column)
                wanted.append(word[place + 1])
        if not ids:
            return 0
        assert self.held is not None
        hidden_BnD = self.held.look(ids, follows)
        wanted_Bn = torch.tensor(wanted, device=hidden_BnD.device).expand(len(hidden_BnD), -1)
        pieces = zip(hidden_BnD.flatten(0, 1).split(64), wanted_Bn.flatten().split(64), strict=True)
        logp_Bn = torch.cat([picked(self._network.logits(x_ND), x_N) for x_ND, x_N in pieces]).view_as(
            wanted_Bn
        )
        added_BF = logp_Bn.new_zeros(len(hidden_BnD), len(words))
        return added_BF.index_add_(1, torch.tensor(columns, device=logp_Bn.device), logp_Bn)


@dataclass(frozen=True)
class _Unit:
    """Rows that are read as one tree; `asked`: for each dose they are read under, their numbers."""

    tree: Tree
    asked: dict[int, tuple[int, ...]]


class OurForward:
    """A known model, as it stands, with directions that steer it."""

    def __init__(self, lm: LanguageModel, directions_LD: Tensor | Directions) -> None:
        """`lm` is one for which `is_known` is true."""
        self._network, self._device, self._directions_LD = Network(lm), lm.device, directions_LD
        self._n_layers = lm.n_layers

    def begin(
        self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, *, n_more: int = 0,
        store: PrefixStore | None = None, gates: Sequence[str] = (), probe: Looks | None = None,
    ) -> Rows:  # fmt: skip
        """One row a prompt, each under its own coefficients and gate."""
        steering = steering_of(self._directions_LD, coefficients_BL).gated(gates)
        read_BL = of_prompt(coefficients_BL, gates)
        of_row, distinct = keys(prompts, read_BL), list(dict.fromkeys(prompts))
        variants = {key: row for row, key in enumerate(of_row) if key[1]}
        reading = steering if read_BL is coefficients_BL else steering_of(self._directions_LD, read_BL)
        first = reading.layers[0] if variants else self._n_layers - 1
        depth = first + 1 if all(steered for _, steered in of_row) else self._n_layers
        if store is None:
            found = self.reads(distinct, depth, {first, depth - 1})
        else:
            wanted = {first, self._n_layers - 1}
            found = store.get(distinct, wanted, self._n_layers, self.reads)
        reads = dict(zip(distinct, found, strict=True))
        apart: dict[Key, Read] = {}
        if variants:
            begun, rows_VL = [prompt for prompt, _ in variants], read_BL[list(variants.values())]
            read = self._steered_reads(begun, [reads[prompt] for prompt in begun], rows_VL, first)
            apart = dict(zip(variants, read, strict=True))
        last = self._n_layers - 1
        ends_BD = torch.cat([apart.get(key, reads[key[0]]).residuals[last] for key in of_row])
        if worth_sharing(len(prompts) + n_more, found):
            steered = list(apart) if first < last else []
            shared = SharedPrompts(
                found,
                [distinct.index(prompt) for prompt in prompts],
                [apart[key] for key in steered],
                [steered.index(key) if key in steered else None for key in of_row],
            )
            own = room_alone([reads[prompt] for prompt in prompts], self._n_layers, room)
        else:
            whole = {
                key: Read(reads[key[0]].pairs | (apart[key].pairs if key in apart else {}), {})
                for key in of_row
            }
            shared, own = None, side_by_side([[whole[key]] for key in of_row], room)
        held = Continuation(self._network, *own, steering.probed(probe), room, shared)
        return OurRows(self._network, ends_BD[:, None], held)

    def residuals(self, prompts: Sequence[Ids], layer: int) -> list[Tensor]:
        """What reaches a block but the first, (T, D) of each prompt, without steering."""
        reads = self.reads(prompts, layer, {layer - 1}, keep=False)
        return [read.residuals[layer - 1] for read in reads]

    def reads(
        self, prompts: Sequence[Ids], depth: int, wanted: Collection[int], *, keep: bool = True
    ) -> list[Read]:
        """Each prompt by itself and without steering, through the first `depth` blocks."""

        def run(batch: PrefixBatch, _: list[int]) -> Pass:
            return batch.run(batch.start, range(depth), keep=keep, wanted=wanted)

        return self._by_themselves(prompts, run)

    def _steered_reads(
        self, prompts: Sequence[Ids], reads: Sequence[Read], coefficients_VL: Tensor, first: int
    ) -> list[Read]:
        """The same under a coefficient row each, from block `first` on, behind which their residual is."""
        steering, last = steering_of(self._directions_LD, coefficients_VL), self._n_layers - 1
        added = [
            steering.of([row]).plus(first, read.residuals[first][None])[0] for row, read in enumerate(reads)
        ]

        def run(batch: PrefixBatch, rows: list[int]) -> Pass:
            begun = batch.begun([added[row] for row in rows])
            return batch.run(begun, range(first + 1, last + 1), steering.of(rows), keep=True, wanted={last})

        return self._by_themselves(prompts, run) if first < last else [Read({}, {last: x}) for x in added]

    def _by_themselves(
        self, prompts: Sequence[Ids], run: Callable[[PrefixBatch, list[int]], Pass]
    ) -> list[Read]:
        trees, made = [Tree((), (prompt,)) for prompt in prompts], {}
        for some in chunks(trees, self._device):
            batch = PrefixBatch(self._network, [trees[i] for i in some], 1, self._device)
            made |= {i: read for i, (read,) in zip(some, batch.reads(run(batch, some)), strict=True)}
        return [made[i] for i in range(len(prompts))]

    def read(
        self, asked: Sequence[Asked], doses_KL: Tensor, *, room: int = 0, look: int = 0, batch_size: int = 32,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[list[int], Rows]]:  # fmt: skip
        """Rows of a group together, the same row under several doses as one."""
        for doses, units in _units(asked, batch_size):
            n_rows = len(units[0].tree.branches) * len(doses)
            at_once = max(1, batch_size // n_rows)
            for start in range(0, len(units), at_once):
                if stop and stop():
                    raise Stopped
                parts = self._parts(units[start : start + at_once], doses, doses_KL, asked, room + look > 0)
                if room + look:
                    yield self._side_by_side(list(parts), asked, doses_KL, room + look)
                else:
                    yield from ((numbers, OurRows(self._network, ends, None)) for numbers, ends, _ in parts)

    def _parts(
        self,
        units: Sequence[_Unit],
        doses: Sequence[int],
        doses_KL: Tensor,
        asked: Sequence[Asked],
        keep: bool,
    ) -> Iterator[tuple[list[int], Tensor, list[list[Read]]]]:
        """The units read, some at once, under each dose; blocks up to the first steered one are shared.

        Of each the rows' numbers, the residual at their ends (R, n, D), and what they were read as.
        """
        steerings = [steering_of(self._directions_LD, doses_KL[[dose]]) for dose in doses]
        last = self._n_layers - 1
        first = min((layer for steering in steerings for layer in steering.layers), default=last)
        n_ends = max(asked[n].n_ends for unit in units for numbers in unit.asked.values() for n in numbers)
        for some in chunks([unit.tree for unit in units], self._device):
            batch = PrefixBatch(self._network, [units[i].tree for i in some], n_ends, self._device)
            low = batch.run(batch.start, range(first + 1), keep=keep)
            for dose, steering in zip(doses, steerings, strict=True):
                begun = replace(low, hidden_ND=steering.plus(first, low.hidden_ND[None])[0])
                read = batch.run(begun, range(first + 1, last + 1), steering, keep=keep)
                numbers = [number for i in some for number in units[i].asked[dose]]
                yield (
                    numbers,
                    read.hidden_ND.unflatten(0, (batch.n_rows, -1)),
                    batch.reads(read) if keep else [],
                )

    def _side_by_side(
        self, parts: Sequence[tuple[list[int], Tensor, list[list[Read]]]], asked: Sequence[Asked],
        doses_KL: Tensor, room: int,
    ) -> tuple[list[int], Rows]:  # fmt: skip
        numbers = [number for part, _, _ in parts for number in part]
        steering = steering_of(self._directions_LD, doses_KL[[asked[number].dose for number in numbers]])
        own = side_by_side([row for *_, reads in parts for row in reads], room)
        held = Continuation(self._network, *own, steering, room)
        return numbers, OurRows(self._network, torch.cat([ends for _, ends, _ in parts]), held)


def _units(asked: Sequence[Asked], batch_size: int) -> Iterator[tuple[tuple[int, ...], list[_Unit]]]:
    """What is read, by the doses it is read under and its number of rows. The same row under several doses is
    read as one, rows of a group as one tree."""
    times: Counter[tuple[int, Ids, int]] = Counter()
    same: dict[tuple[int, Ids, int], dict[int, int]] = {}
    for number, row in enumerate(asked):
        again = times[row.group, row.ids, row.dose]
        same.setdefault((row.group, row.ids, again), {})[row.dose] = number
        times[row.group, row.ids, row.dose] += 1
    groups: dict[tuple[int, ...], dict[int, list[dict[int, int]]]] = {}
    for (group, *_), by_dose in same.items():
        groups.setdefault(tuple(by_dose), {}).setdefault(group, []).append(by_dose)
    for doses, of_group in groups.items():
        alone = [rows[0] for rows in of_group.values() if len(rows) == 1]
        alone.sort(key=lambda by_dose: len(asked[by_dose[doses[0]]].ids))
        together = _split(alone, TOGETHER)
        for rows in of_group.values():
            if len(rows) > 1:
                together += _split(rows, max(1, batch_size // len(doses)))
        units: dict[int, list[_Unit]] = {}
        for rows in together:
            some = [asked[by_dose[doses[0]]] for by_dose in rows]
            read = tree([row.ids for row in some], [row.n_ends for row in some])
            numbers = {dose: tuple(by_dose[dose] for by_dose in rows) for dose in doses}
            units.setdefault(len(rows), []).append(_Unit(read, numbers))
        for found in units.values():
            yield doses, sorted(found, key=lambda unit: unit.tree.n_tokens)


def _split(rows: list[T], size: int) -> list[list[T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
