"""Any model, and steering by any operator, through transformers' own forward with hooks.

Rows of one prompt are the same up to the first steered block: unsteered ones wholly, steered ones below it.
So the distinct prompts are read once, without steering; then the distinct steered rows are read from the
first steered block on, that block and those below giving what they gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer_heal.config import EVERYWHERE
from steer_heal.forward.cache import RoomyCache, gather
from steer_heal.forward.rows import Asked, Rows, keys, picked
from steer_heal.forward.store import PrefixStore
from steer_heal.models import LanguageModel, Padded, computing, left_pad
from steer_heal.records import Stopped
from steer_heal.vectors.steering import Directions, Looks, Operator, Steering, of_prompt, steering_of

Ids = tuple[int, ...]
BlockOutput = Any
"""What a block returns: the residual (B, T, D), alone or leading a tuple."""


@dataclass(frozen=True, eq=False)
class _Read:
    """One unsteered pass over distinct prompts, and what the blocks asked for gave."""

    batch: Padded
    logits_BV: Tensor
    cache: RoomyCache
    outputs: dict[int, BlockOutput]

    @property
    def layers(self) -> Collection[int]:
        return self.outputs.keys()


class PlainRows(Rows):
    """Rows padded on the left: their texts, the logits of their last positions, and what reading on needs.

    `steering`: what they read on under.
    """

    def __init__(
        self, lm: LanguageModel, steering: Steering, texts: Sequence[Ids], batch: Padded, logits_BnV: Tensor,
        cache: RoomyCache | None,
    ) -> None:  # fmt: skip
        self._lm, self.steering, self._texts, self._n_read = lm, steering, list(texts), 0
        self._logits_BnV, self.cache = logits_BnV, cache
        self.mask_BT = None if batch.full else batch.mask_BT
        self.positions_B = batch.positions_BT[:, -1] + 1

    @property
    def logits_BV(self) -> Tensor:
        return self._logits_BnV[:, -1]

    def read(self, ids_Bn: Tensor, n_ends: int = 1) -> None:
        assert self.cache is not None
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(ids_Bn.shape)], dim=1)
        steps_n = torch.arange(ids_Bn.shape[1], device=self.positions_B.device)
        positions_Bn = self.positions_B[:, None] + steps_n
        with self.steering.at(self._n_read).attached(self._lm.blocks):
            self._logits_BnV = logits_of(self._lm, ids_Bn, self.mask_BT, positions_Bn, self.cache, n_ends)
        self._n_read += len(steps_n)
        self.positions_B = self.positions_B + len(steps_n)
        self._texts = [(*text, *ids) for text, ids in zip(self._texts, ids_Bn.tolist(), strict=True)]

    def keep(self, kept: Sequence[int]) -> None:
        assert self.cache is not None
        index = torch.tensor(kept, device=self._lm.device)
        self.cache.batch_select_indices(index)
        self.steering.keep(index)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[index]
        self.positions_B, self._logits_BnV = self.positions_B[index], self._logits_BnV[index]
        self._texts = [self._texts[row] for row in kept]

    def logits(self, rows: slice) -> Tensor:
        return self._logits_BnV[rows]

    def _further(self, words: Sequence[Sequence[int]]) -> Tensor | int:
        if all(len(ids) == 1 for ids in words):
            return 0
        added_BF = torch.zeros(len(self._texts), len(words), device=self._lm.device)
        for column, ids in enumerate(words):
            if len(ids) > 1:
                batch = left_pad([(*text, *ids) for text in self._texts], self._lm.pad_id, self._lm.device)
                with self.steering.attached(self._lm.blocks):
                    logits_BnV = _read_batch(self._lm, batch, None, len(ids))[:, :-1]
                wanted = torch.tensor(list(ids[1:]), device=logits_BnV.device)
                each = [picked(logits_nV, wanted).sum() for logits_nV in logits_BnV]
                added_BF[:, column] = torch.stack(each)
        return added_BF


class PlainForward:
    """A model with whatever steers it."""

    def __init__(self, lm: LanguageModel, directions_LD: Tensor | Operator) -> None:
        self._lm, self._directions_LD = lm, directions_LD

    def read(
        self, asked: Sequence[Asked], doses_KL: Tensor, *, room: int = 0, look: int = 0, batch_size: int = 32,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[list[int], Rows]]:  # fmt: skip
        """Rows of like length together, each under its dose."""
        by_length = sorted(range(len(asked)), key=lambda number: len(asked[number].ids))
        for start in range(0, len(asked), batch_size):
            if stop and stop():
                raise Stopped
            numbers = by_length[start : start + batch_size]
            some = [asked[number] for number in numbers]
            doses_BL, n_ends = doses_KL[[row.dose for row in some]], max(row.n_ends for row in some)
            yield numbers, self.apart([row.ids for row in some], doses_BL, room, n_ends)

    def begin(
        self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, *, n_more: int = 0,
        store: PrefixStore | None = None, gates: Sequence[str] = (), probe: Looks | None = None,
    ) -> Rows:  # fmt: skip
        """One row a prompt, each under its own coefficients and gate."""
        rows = self._begin(prompts, of_prompt(coefficients_BL, gates), room, store)
        if any(gate != EVERYWHERE for gate in gates):
            rows.steering = steering_of(self._directions_LD, coefficients_BL).gated(gates)
        rows.steering = rows.steering.probed(probe)
        return rows

    def _begin(
        self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, store: PrefixStore | None
    ) -> PlainRows:
        if not isinstance(self._directions_LD, Tensor | Directions):
            return self.apart(prompts, coefficients_BL, room)
        lm, distinct = self._lm, list(dict.fromkeys(prompts))
        of_row = keys(prompts, coefficients_BL)
        variants = {key: row for row, key in enumerate(of_row) if key[1]}
        steering = steering_of(self._directions_LD, coefficients_BL)
        stored = store is not None and len(distinct) == 1
        saved, spent = len(variants) * (min(steering.layers, default=0) + 1), len(distinct) * lm.n_layers
        if all(steered for _, steered in of_row) and not stored and saved <= spent:
            made = self.apart(
                [prompt for prompt, _ in variants], coefficients_BL[list(variants.values())], room
            )
            order = list(variants)
            made.keep([order.index(key) for key in of_row])
            return made
        read = self._read_unsteered(distinct, steering.layers[:1], store)
        prompt_rows = torch.tensor([distinct.index(prompt) for prompt in prompts])
        parts, rows, logits_NV = [read.cache], prompt_rows, read.logits_BV
        if variants:
            at = torch.tensor([distinct.index(prompt) for prompt, _ in variants])
            steered_BV, cache = self._replay(read, at, coefficients_BL[list(variants.values())])
            parts.append(cache)
            places = {key: len(distinct) + number for number, key in enumerate(variants)}
            rows = torch.tensor([places.get(key, distinct.index(key[0])) for key in of_row])
            logits_NV = torch.cat([logits_NV, steered_BV])
        logits_BV = logits_NV[rows.to(logits_NV.device)]
        cache = gather(parts, prompt_rows, rows, room)
        return PlainRows(lm, steering, prompts, _take(read.batch, prompt_rows), logits_BV[:, None], cache)

    def apart(self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, n_ends: int = 1) -> PlainRows:
        """With nothing shared: every row reads its whole prompt under its own steering."""
        batch = left_pad(prompts, self._lm.pad_id, self._lm.device)
        cache = RoomyCache(self._lm.n_layers, room) if room else None
        steering = steering_of(self._directions_LD, coefficients_BL)
        with steering.attached(self._lm.blocks):
            logits_BnV = _read_batch(self._lm, batch, cache, n_ends)
        return PlainRows(self._lm, steering, prompts, batch, logits_BnV, cache)

    def _read_unsteered(self, prompts: list[Ids], layers: Sequence[int], store: PrefixStore | None) -> _Read:
        """Distinct prompts without steering; one alone is kept in the store."""
        lm = self._lm

        def make(some: Sequence[Ids], wanted: Collection[int]) -> list[_Read]:
            batch, cache = left_pad(some, lm.pad_id, lm.device), RoomyCache(lm.n_layers, 0)
            outputs: dict[int, BlockOutput] = {}
            with ExitStack() as hooks:
                for layer in wanted:
                    hook = lm.blocks[layer].register_forward_hook(_keep(outputs, layer))
                    hooks.callback(hook.remove)
                return [_Read(batch, _read_batch(lm, batch, cache, 1)[:, -1], cache, outputs)]

        if store is None or len(prompts) != 1:
            return make(prompts, layers)[0]
        return store.get("plain", prompts, layers, lm.n_layers, make)[0]

    def _replay(self, read: _Read, rows: Tensor, coefficients_VL: Tensor) -> tuple[Tensor, RoomyCache]:
        """Rows of the read prompts again under steering; blocks up to the first steered one are not run."""
        lm, steering = self._lm, steering_of(self._directions_LD, coefficients_VL)
        first, cache = steering.layers[0], RoomyCache(lm.n_layers, 0)
        given = _rows_of(read.outputs[first], rows)
        with ExitStack() as stack:
            for block in lm.blocks[: first + 1]:
                stack.enter_context(computing(block, lambda *_, **__: given))
            stack.enter_context(steering.attached(lm.blocks))
            return _read_batch(lm, _take(read.batch, rows), cache, 1)[:, -1], cache


def _read_batch(lm: LanguageModel, batch: Padded, cache: RoomyCache | None, n_ends: int) -> Tensor:
    """Logits (B, n, V) at each row's last positions."""
    mask_BT = None if batch.full else batch.mask_BT
    return logits_of(lm, batch.ids_BT, mask_BT, batch.positions_BT, cache, n_ends)


def logits_of(
    lm: LanguageModel, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor, cache: RoomyCache | None,
    n_ends: int,
) -> Tensor:  # fmt: skip
    return lm.model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=n_ends,
    ).logits


def _keep(outputs: dict[int, BlockOutput], layer: int) -> Callable[..., None]:
    def keep(_block: nn.Module, _inputs: tuple[Any, ...], output: BlockOutput) -> None:
        outputs[layer] = output

    return keep


def _rows_of(output: BlockOutput, rows: Tensor) -> BlockOutput:
    if isinstance(output, tuple):
        return (_rows_of(output[0], rows), *output[1:])
    return output[rows.to(output.device)]


def _take(batch: Padded, rows: Tensor) -> Padded:
    index = rows.to(batch.ids_BT.device)
    return Padded(batch.ids_BT[index], batch.mask_BT[index], batch.positions_BT[index])
