"""What the student is held to: a reference's predictions, and a steered teacher's residual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.heal.examples import Example
from steer_heal.heal.output import hidden_states
from steer_heal.models import LanguageModel, left_pad
from steer_heal.steering import steer


class Reference:
    """The reference's final hidden states: the folded history's ("prev") or the base's ("base").

    They are computed once an example, without gradient, and kept: as wide as the model, they take a
    hundredth of what its logits would.
    """

    def __init__(self, lm: LanguageModel, stack: AdapterStack, settings: TrainSettings) -> None:
        self._lm, self._stack, self._which = lm, stack, settings.reference
        self._needed = settings.divergence != "nll"
        self._kept: dict[Example, Tensor] = {}

    @torch.no_grad()
    def hidden(self, batch: Sequence[Example]) -> Tensor | None:
        """(N, D) aligned with `hidden_states`; None where the loss has no divergence."""
        if not self._needed:
            return None
        if new := [row for row in dict.fromkeys(batch) if row not in self._kept]:
            with self._stack.off() if self._which == "base" else self._stack.previous():
                found_ND = hidden_states(self._lm, new)
            parts = found_ND.split([len(row.completion_ids) for row in new])
            self._kept.update((row, part.clone()) for row, part in zip(new, parts, strict=True))
        return torch.cat([self._kept[row] for row in batch])


@contextmanager
def residual_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """The block's outputs (B, T, D), hooks that came before included, as they come."""
    seen: list[Tensor] = []

    def look(_block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = block.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class Teacher:
    """The previous round's student under steering: what its residual is where the steered layers end.

    `directions_LD`, `coefficients_L`: what is added at each layer; some coefficient must not be 0.
    """

    lm: LanguageModel
    stack: AdapterStack
    directions_LD: Tensor
    coefficients_L: Tensor
    _kept: dict[Example, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steered = self.coefficients_L.nonzero().flatten().tolist()
        if not steered:
            raise ValueError("a teacher must be steered: every coefficient is 0")
        self.block = self.lm.blocks[steered[-1]]

    def distance(self, batch: Sequence[Example], residual_BTD: Tensor) -> Tensor:
        """mean |h - h_steered|^2 / mean |h_steered - h_unsteered|^2 over all of the batch's positions.

        1 when nothing of what steering does to the residual was learnt, 0 when all of it was. Source: hints
        from a teacher's hidden states (Romero et al., 2015, arXiv:1412.6550).
        """
        self._look_up([row for row in dict.fromkeys(batch) if row not in self._kept])
        rows = zip(batch, residual_BTD, strict=True)
        missed = [
            (hidden_TD[-row.length :] - self._kept[row][0]).float().square().sum() for row, hidden_TD in rows
        ]
        return torch.stack(missed).sum() / torch.stack([self._kept[row][1] for row in batch]).sum()

    @torch.no_grad()
    def _look_up(self, new: Sequence[Example]) -> None:
        if not new:
            return
        padded = left_pad([row.ids for row in new], self.lm.pad_id, self.lm.device)
        inputs = {"attention_mask": padded.mask_BT, "position_ids": padded.positions_BT, "use_cache": False}
        both = []
        with self.stack.previous():
            for coefficients_L in (torch.zeros_like(self.coefficients_L), self.coefficients_L):
                with (
                    steer(self.lm.blocks, self.directions_LD, coefficients_L[None]),
                    residual_of(self.block) as seen,
                ):
                    self.lm.model.base_model(input_ids=padded.ids_BT, **inputs)
                both.append(seen[0])
        for row, plain_TD, steered_TD in zip(new, *both, strict=True):
            target_TD = steered_TD[-row.length :]
            effect = (target_TD - plain_TD[-row.length :]).float().square().sum()
            self._kept[row] = (target_TD.clone(), effect)
