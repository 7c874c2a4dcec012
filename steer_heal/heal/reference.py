"""The reference that the divergence is measured from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_heal.config import TrainSettings
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.below import Below
from steer_heal.heal.examples import Example
from steer_heal.heal.output import hidden_states
from steer_heal.models import LanguageModel


class Reference:
    """The reference's final hidden states: the folded history's ("prev") or the base's ("base").

    They are computed once an example, without gradient, and kept: as wide as the model, they take a
    hundredth of what its logits would. `below`: states that the previous round's student shares.
    """

    def __init__(
        self, lm: LanguageModel, stack: AdapterStack, settings: TrainSettings, below: Below | None = None
    ) -> None:
        self._lm, self._stack, self._which = lm, stack, settings.reference
        self._needed = settings.divergence != "nll"
        self._below = below if settings.reference == "prev" else None
        self._kept: dict[Example, Tensor] = {}

    @torch.no_grad()
    def hidden(self, batch: Sequence[Example]) -> Tensor | None:
        """(N, D) aligned with `hidden_states`; None where the loss has no divergence."""
        if not self._needed:
            return None
        if new := [row for row in dict.fromkeys(batch) if row not in self._kept]:
            with self._stack.off() if self._which == "base" else self._stack.previous():
                found_ND = hidden_states(self._lm, new, self._below)
            self._kept |= _by_example(new, found_ND)
        return torch.cat([self._kept[row] for row in batch])


def _by_example(rows: Sequence[Example], found_N: Tensor) -> dict[Example, Tensor]:
    parts = found_N.split([len(row.completion_ids) for row in rows])
    return {row: part.clone() for row, part in zip(rows, parts, strict=True)}
