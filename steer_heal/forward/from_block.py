"""The blocks in two parts: what reaches one of them, and transformers' own passes that begin there.

So that what lies beneath the first block that is trained is read once, not at every step.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steer_heal.forward.known import is_known
from steer_heal.forward.ours import OurForward
from steer_heal.models import LanguageModel, computing, left_pad

_LOOK = 8


class FromBlock:
    """Passes that begin at block `first`, from what reaches it.

    A model whose blocks hand on more than the residual (keys that later blocks read again) is found out at
    the start, and `first` is then 0: its passes are whole ones.
    """

    def __init__(self, lm: LanguageModel, first: int) -> None:
        self.lm, self.first, self._tuples = lm, first, False
        if first and not self._carries():
            self.first = 0

    @torch.no_grad()
    def residuals(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """What reaches the block, (T, D) of each row, under the adapters that are on."""
        if is_known(self.lm):
            return OurForward(self.lm, torch.zeros(self.lm.n_layers, 1)).residuals(rows, self.first)
        padded, blocks = left_pad(rows, self.lm.pad_id, self.lm.device), self.lm.blocks
        with _entry_of(blocks[self.first]) as seen, _skipped(blocks[self.first :], tuples=self._tuples):
            self.lm.model.base_model(**padded.inputs, use_cache=False)
        return [hidden_TD[-len(row) :] for row, hidden_TD in zip(rows, seen[0], strict=True)]

    @contextmanager
    def begun(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Passes over rows of which these states, (T, D), reach the block, padded as `left_pad` does."""
        longest = max(map(len, states))
        hidden_BTD = states[0].new_zeros(len(states), longest, states[0].shape[-1])
        for place_TD, states_TD in zip(hidden_BTD, states, strict=True):
            place_TD[longest - len(states_TD) :] = states_TD
        with self._begun(hidden_BTD):
            yield

    @contextmanager
    def _begun(self, hidden_BTD: Tensor) -> Iterator[None]:
        blocks = self.lm.blocks
        with _skipped(blocks[: self.first], tuples=self._tuples), _fed(blocks[self.first], hidden_BTD):
            yield

    @torch.no_grad()
    def _carries(self) -> bool:
        """Whether a pass that begins at the block gives what a whole one gives."""
        ids_BT = torch.arange(_LOOK, device=self.lm.device)[None]
        blocks, model, outputs = self.lm.blocks, self.lm.model.base_model, []
        handle = blocks[0].register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
        try:
            with _entry_of(blocks[self.first]) as seen:
                whole_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        self._tuples = isinstance(outputs[0], tuple)
        with self._begun(seen[0]):
            part_BTD = model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return bool((part_BTD - whole_BTD).abs().max() <= 1e-2 * whole_BTD.abs().max())


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
def _skipped(blocks: Sequence[nn.Module], *, tuples: bool) -> Iterator[None]:
    """Each of these blocks hands on what it is given, as a tuple where the model wants one."""

    def hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if tuples else hidden_states

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(computing(block, hand_on))
        yield
