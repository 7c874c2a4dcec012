"""What the student is held to: a reference's predictions, and a steered teacher's residual."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.heal.below import Below, residual_of
from steer_heal.heal.examples import Example
from steer_heal.heal.output import OutputLayer, hidden_states
from steer_heal.models import LanguageModel, left_pad
from steer_heal.steering import steer


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
        self._log_z: dict[Example, Tensor] = {}

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

    @torch.no_grad()
    def log_z(self, output: OutputLayer, batch: Sequence[Example]) -> Tensor | None:
        """log sum exp of its logits at the same positions, (N,), float32; once an example too."""
        if new := [row for row in dict.fromkeys(batch) if row not in self._log_z]:
            hidden_ND = self.hidden(new)
            if hidden_ND is None:
                return None
            self._log_z |= _by_example(new, output.log_z(hidden_ND))
        return torch.cat([self._log_z[row] for row in batch])


def _by_example(rows: Sequence[Example], found_N: Tensor) -> dict[Example, Tensor]:
    parts = found_N.split([len(row.completion_ids) for row in rows])
    return {row: part.clone() for row, part in zip(rows, parts, strict=True)}


@dataclass
class Teacher:
    """The previous round's student under steering: what its residual is where the steered layers end.

    `directions_LD`: what is added at each layer, `coefficients_L` times; all 0 for the student as it is.
    `unit_L`: the coefficients whose effect is the distance's unit, the former's own where there are none;
    some must not be 0.
    """

    lm: LanguageModel
    stack: AdapterStack
    directions_LD: Tensor
    coefficients_L: Tensor
    unit_L: Tensor | None = None
    _kept: dict[Example, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _doses: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._doses = [torch.zeros_like(self.coefficients_L), self.coefficients_L]
        if self.unit_L is not None and not torch.equal(self.unit_L, self.coefficients_L):
            self._doses.append(self.unit_L)
        steered = self._doses[-1].nonzero().flatten().tolist()
        if not steered:
            raise ValueError("a teacher's unit must be steered: every coefficient is 0")
        self.first, self.last = steered[0], steered[-1]
        self.block = self.lm.blocks[self.last]

    def distance(self, batch: Sequence[Example], residual_BTD: Tensor, below: Below | None = None) -> Tensor:
        """mean |h - h_steered|^2 / mean |h_unit - h_unsteered|^2 over all of the batch's positions.

        0 when all that steering does to the residual was learnt. A unit that stays the same from dose to dose
        keeps a small dose from holding the student harder than a large one. `below`: states to begin at,
        before the first steered layer. Source: hints from a teacher's hidden states (Romero et al., 2015,
        arXiv:1412.6550).
        """
        self._look_up([row for row in dict.fromkeys(batch) if row not in self._kept], below)
        rows = zip(batch, residual_BTD, strict=True)
        missed = [
            (hidden_TD[-row.length :] - self._kept[row][0]).float().square().sum() for row, hidden_TD in rows
        ]
        return torch.stack(missed).sum() / torch.stack([self._kept[row][1] for row in batch]).sum()

    @torch.no_grad()
    def _look_up(self, new: Sequence[Example], below: Below | None) -> None:
        if not new:
            return
        padded = left_pad([row.ids for row in new], self.lm.pad_id, self.lm.device)
        inputs = {"attention_mask": padded.mask_BT, "position_ids": padded.positions_BT, "use_cache": False}
        states = []
        with self.stack.previous(), ExitStack() as within:
            if below is not None:
                within.enter_context(below.entered(new))
                within.enter_context(below.up_to(self.last))
            for coefficients_L in self._doses:
                with (
                    steer(self.lm.blocks, self.directions_LD, coefficients_L[None]),
                    residual_of(self.block) as seen,
                ):
                    self.lm.model.base_model(input_ids=padded.ids_BT, **inputs)
                states.append(seen[0])
        plain, steered, unit = states[0], states[1], states[-1]
        for row, plain_TD, steered_TD, unit_TD in zip(new, plain, steered, unit, strict=True):
            target_TD = steered_TD[-row.length :]
            effect = (unit_TD - plain_TD)[-row.length :].float().square().sum()
            self._kept[row] = (target_TD.clone(), effect)
