"""The model that the student is compared with, token by token."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from steer_heal.config import TrainSettings
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.examples import Example
from steer_heal.heal.frozen_prefix import FrozenPrefix
from steer_heal.heal.lm_head import hidden_states
from steer_heal.models import LanguageModel

Steer = Callable[[Sequence[Example]], AbstractContextManager[Any]]
"""Steers the model, which reads these examples padded on the left, as long as the context lasts."""


class Reference:
    """The reference's final hidden states: those of the folded history ("prev"), of the base ("base"), or of
    who wrote the answer ("writer"): the folded history under steering, the base where nothing was steered.

    They are computed once an example, without gradient, and kept: as wide as the model, they take a
    hundredth of what its logits would. `frozen`: states that the previous round's student shares. `steer`: as
    the writer was steered; nothing is when there is none.
    """

    def __init__(
        self,
        lm: LanguageModel,
        stack: AdapterStack,
        settings: TrainSettings,
        frozen: FrozenPrefix | None = None,
        steer: Steer = nullcontext,
    ) -> None:
        self._lm, self._stack, self._which = lm, stack, settings.reference
        self._needed = settings.divergence != "nll"
        self._frozen, self._steer = frozen, steer
        self._kept: dict[Example, Tensor] = {}

    @torch.no_grad()
    def hidden(self, batch: Sequence[Example]) -> Tensor | None:
        """(N, D) aligned with `hidden_states`; None where the loss has no divergence."""
        if not self._needed:
            return None
        self.read(batch)
        return torch.cat([self._kept[row] for row in batch])

    @torch.no_grad()
    def read(self, batch: Sequence[Example]) -> None:
        """Have the states of these at hand."""
        new = [row for row in dict.fromkeys(batch) if row not in self._kept]
        for steered in (True, False):
            if some := [row for row in new if row.steered == steered]:
                with self._model(some, steered) as frozen:
                    found_ND = hidden_states(self._lm, some, frozen)
                self._kept |= _by_example(some, found_ND)

    @contextmanager
    def _model(self, some: Sequence[Example], steered: bool) -> Iterator[FrozenPrefix | None]:
        """The reference of these examples as long as it lasts, and the states that it has in common."""
        if self._which == "base" or (self._which == "writer" and not steered):
            with self._stack.off():
                yield None
        else:
            with self._stack.previous(), self._steer(some) if self._which == "writer" else nullcontext():
                yield self._frozen


def _by_example(rows: Sequence[Example], found_N: Tensor) -> dict[Example, Tensor]:
    parts = found_N.split([len(row.completion_ids) for row in rows])
    return {row: part.clone() for row, part in zip(rows, parts, strict=True)}
