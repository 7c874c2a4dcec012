"""The blocks beneath the first that is trained: read once an example, not once an epoch.

Nothing beneath it changes in a round, so what reaches it is the same in every epoch, for the student and for
the previous round's. A forward pass then begins there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.examples import Example
from steer_heal.models import LanguageModel, computing, left_pad

KEPT_BYTES = 2 << 30
"""States kept for all examples take at most this much; what is beyond it is read anew with each batch."""
_LOOK = 8


@contextmanager
def _entry_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """What the block is given, (B, T, D), as it comes."""
    seen: list[Tensor] = []

    def look(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    handle = block.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _fed(block: nn.Module, hidden_BTD: Tensor) -> Iterator[None]:
    """The block is given this, whatever comes to it."""

    def feed(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (hidden_BTD, *inputs[1:]), named
        return inputs, {**named, "hidden_states": hidden_BTD}

    handle = block.register_forward_pre_hook(feed, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def skipped(blocks: Sequence[nn.Module], *, tuples: bool) -> Iterator[None]:
    """Each of these blocks hands on what it is given, as a tuple where the model wants one."""

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if tuples else hidden_states

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(computing(block, hand_on))
        yield


def first_trained(lm: LanguageModel, stack: AdapterStack) -> int:
    """The first block that holds a trained parameter; 0 where one lies outside the blocks, or none is."""
    found = set(map(id, stack.trainable()))
    holds = [{id(parameter) for parameter in block.parameters()} & found for block in lm.blocks]
    if sum(map(len, holds)) < len(found) or not found:
        return 0
    return next(layer for layer, some in enumerate(holds) if some)


class Below:
    """What reaches block `first`, kept an example at a time. With `first` 0 it does nothing.

    Good for as long as no adapter beneath `first` changes: one round. A model whose blocks hand on more than
    the residual (keys that later blocks read again) is found out at the start, and `first` is then 0.
    """

    def __init__(self, lm: LanguageModel, first: int) -> None:
        self.lm, self.first, self._tuples = lm, first, False
        self.kept: dict[Example, Tensor] = {}
        self._bytes = 0
        if first and not self._carries():
            self.first = 0

    @contextmanager
    def entered(self, batch: Sequence[Example]) -> Iterator[None]:
        """Forward passes over the batch, padded by `left_pad`, begin at `first`."""
        if not self.first:
            yield
            return
        rows = self._states(batch)
        longest = max(map(len, rows))
        hidden_BTD = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        for place_TD, row_TD in zip(hidden_BTD, rows, strict=True):
            place_TD[longest - len(row_TD) :] = row_TD
        with self._from_first(hidden_BTD):
            yield

    @contextmanager
    def _from_first(self, hidden_BTD: Tensor) -> Iterator[None]:
        blocks = self.lm.blocks
        with skipped(blocks[: self.first], tuples=self._tuples), _fed(blocks[self.first], hidden_BTD):
            yield

    def _states(self, batch: Sequence[Example]) -> list[Tensor]:
        """(T, D) of each row."""
        found = {row: self.kept[row] for row in batch if row in self.kept}
        if new := [row for row in dict.fromkeys(batch) if row not in found]:
            read = dict(zip(new, self._read(new), strict=True))
            found |= read
            for row, states_TD in read.items():
                if self._bytes + states_TD.nbytes <= KEPT_BYTES:
                    self.kept[row] = states_TD.clone()
                    self._bytes += states_TD.nbytes
        return [found[row] for row in batch]

    @torch.no_grad()
    def _read(self, rows: Sequence[Example]) -> list[Tensor]:
        padded = left_pad([row.ids for row in rows], self.lm.pad_id, self.lm.device)
        inputs = {"attention_mask": padded.mask_BT, "position_ids": padded.positions_BT, "use_cache": False}
        blocks = self.lm.blocks
        with _entry_of(blocks[self.first]) as seen, skipped(blocks[self.first :], tuples=self._tuples):
            self.lm.model.base_model(input_ids=padded.ids_BT, **inputs)
        return [hidden_TD[-row.length :] for row, hidden_TD in zip(rows, seen[0], strict=True)]

    @torch.no_grad()
    def _carries(self) -> bool:
        """Whether a pass that begins at `first` gives what a whole one gives."""
        ids_BT = torch.arange(_LOOK, device=self.lm.device)[None]
        blocks, model, outputs = self.lm.blocks, self.lm.model.base_model, []
        handle = blocks[0].register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
        try:
            with _entry_of(blocks[self.first]) as seen:
                whole_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        self._tuples = isinstance(outputs[0], tuple)
        with self._from_first(seen[0]):
            part_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return bool((part_BTD - whole_BTD).abs().max() <= 1e-2 * whole_BTD.abs().max())
