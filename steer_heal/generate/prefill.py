"""Reading the prompts, with what lanes have in common read once.

Lanes of one prompt are the same up to the first steered block: base lanes wholly, steered lanes below it. So
the distinct prompts are read once, without steering; then the distinct steered lanes are read from the first
steered block on, that block and those below giving what they gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steer_heal.generate.cache import RoomyCache, gather
from steer_heal.generate.rows import Lane
from steer_heal.generate.store import PrefixStore
from steer_heal.models import LanguageModel, Padded, computing, left_pad
from steer_heal.vectors.steering import Operator, Steering, steering_of

BlockOutput = Any
"""What a block returns: the residual (B, T, D), alone or leading a tuple."""


@dataclass(frozen=True, eq=False)
class Prefilled:
    """The batch after its prompts: last logits, cache, mask over the prompt (none when nothing is padded),
    and each lane's next position."""

    logits_BV: Tensor
    cache: RoomyCache
    mask_BT: Tensor | None
    positions_B: Tensor


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


@torch.inference_mode()
def prefill(
    lm: LanguageModel,
    lanes: Sequence[Lane],
    directions_LD: Tensor | Operator,
    room: int,
    store: PrefixStore | None = None,
) -> Prefilled:
    """Read the prompts of all lanes; `room` tokens can follow."""
    if not isinstance(directions_LD, Tensor):
        return prefill_apart(lm, lanes, directions_LD, room)
    prompts = list(dict.fromkeys(lane.prompt_ids for lane in lanes))
    steered = {lane.key[:2]: lane for lane in lanes if lane.steered}
    variants = list(steered.values())
    prompt_rows = torch.tensor([prompts.index(lane.prompt_ids) for lane in lanes])
    if not variants:
        read = _read(lm, prompts, (), store)
        cache = gather([read.cache], prompt_rows, prompt_rows, room)
        return _prefilled(read.batch, prompt_rows, read.logits_BV[prompt_rows], cache)
    steering = Steering(directions_LD, torch.stack([lane.coefficients_L for lane in variants]))
    any_base = any(not lane.steered for lane in lanes)
    stored = store is not None and len(prompts) == 1
    saved, spent = len(variants) * (steering.layers[0] + 1), len(prompts) * lm.n_layers
    if not any_base and not stored and saved <= spent:
        return _select(prefill_apart(lm, variants, directions_LD, room), variants, lanes, room)
    read, n = _read(lm, prompts, steering.layers[:1], store), len(prompts)
    rows = torch.tensor([prompts.index(lane.prompt_ids) for lane in variants])
    logits_KV, own = _replay(lm, read, rows, steering)
    numbers = {key: n + number for number, key in enumerate(steered)}
    lane_rows = torch.tensor([numbers.get(lane.key[:2], prompts.index(lane.prompt_ids)) for lane in lanes])
    logits_BV = torch.cat([read.logits_BV, logits_KV])[lane_rows.to(logits_KV.device)]
    return _prefilled(
        read.batch, prompt_rows, logits_BV, gather([read.cache, own], prompt_rows, lane_rows, room)
    )


@torch.inference_mode()
def prefill_apart(
    lm: LanguageModel, lanes: Sequence[Lane], directions_LD: Tensor | Operator, room: int
) -> Prefilled:
    """The same with nothing shared: every lane reads its whole prompt under its own steering."""
    batch = left_pad([lane.prompt_ids for lane in lanes], lm.pad_id, lm.device)
    coefficients_BL = torch.stack([lane.coefficients_L for lane in lanes])
    cache = RoomyCache(lm.n_layers, room)
    with steering_of(directions_LD, coefficients_BL).attached(lm.blocks):
        logits_BV = _forward(lm, batch, cache)
    return _prefilled(batch, torch.arange(len(lanes)), logits_BV, cache)


def _forward(lm: LanguageModel, batch: Padded, cache: RoomyCache) -> Tensor:
    output = lm.model(
        input_ids=batch.ids_BT,
        attention_mask=None if batch.full else batch.mask_BT,
        position_ids=batch.positions_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1]


def _read(
    lm: LanguageModel, prompts: list[tuple[int, ...]], layers: Sequence[int], store: PrefixStore | None
) -> _Read:
    """The unsteered pass; one prompt alone is kept in the store."""

    def make(some: Sequence[tuple[int, ...]], wanted: Collection[int]) -> list[_Read]:
        batch, cache = left_pad(some, lm.pad_id, lm.device), RoomyCache(lm.n_layers, 0)
        outputs: dict[int, BlockOutput] = {}
        with ExitStack() as hooks:
            for layer in wanted:
                hook = lm.blocks[layer].register_forward_hook(_keep(outputs, layer))
                hooks.callback(hook.remove)
            return [_Read(batch, _forward(lm, batch, cache), cache, outputs)]

    if store is None or len(prompts) != 1:
        return make(prompts, layers)[0]
    return store.get("plain", prompts, layers, lm.n_layers, make)[0]


def _keep(outputs: dict[int, BlockOutput], layer: int) -> Callable[..., None]:
    def keep(_block: nn.Module, _inputs: tuple[Any, ...], output: BlockOutput) -> None:
        outputs[layer] = output

    return keep


def _replay(lm: LanguageModel, read: _Read, rows: Tensor, steering: Steering) -> tuple[Tensor, RoomyCache]:
    """Rows of the read prompts again under steering; blocks up to the first steered one are not run."""
    first = steering.layers[0]
    batch = _take(read.batch, rows)
    given = _rows_of(read.outputs[first], rows)
    cache = RoomyCache(lm.n_layers, 0)
    with ExitStack() as stack:
        for block in lm.blocks[: first + 1]:
            stack.enter_context(computing(block, lambda *_, **__: given))
        stack.enter_context(steering.attached(lm.blocks))
        return _forward(lm, batch, cache), cache


def _rows_of(output: BlockOutput, rows: Tensor) -> BlockOutput:
    if isinstance(output, tuple):
        return (_rows_of(output[0], rows), *output[1:])
    return output[rows.to(output.device)]


def _take(batch: Padded, rows: Tensor) -> Padded:
    index = rows.to(batch.ids_BT.device)
    return Padded(batch.ids_BT[index], batch.mask_BT[index], batch.positions_BT[index])


def _prefilled(batch: Padded, rows: Tensor, logits_BV: Tensor, cache: RoomyCache) -> Prefilled:
    taken = _take(batch, rows)
    return Prefilled(logits_BV, cache, None if batch.full else taken.mask_BT, taken.positions_BT[:, -1] + 1)


def _select(made: Prefilled, variants: Sequence[Lane], lanes: Sequence[Lane], room: int) -> Prefilled:
    """The lanes out of the distinct ones that were read."""
    numbers = {lane.key[:2]: number for number, lane in enumerate(variants)}
    rows = torch.tensor([numbers[lane.key[:2]] for lane in lanes])
    if rows.tolist() == list(range(len(variants))):
        return made
    index = rows.to(made.logits_BV.device)
    mask_BT = None if made.mask_BT is None else made.mask_BT[index]
    cache = gather([made.cache], rows, rows, room)
    return Prefilled(made.logits_BV[index], cache, mask_BT, made.positions_B[index])
