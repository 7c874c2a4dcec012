"""What is generated: rows as the caller asks for them, and the lanes of the batch that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import SettingsError


@dataclass(frozen=True, eq=False)
class Row:
    """One answer to write.

    `coefficients_L`: what is added along each layer's direction; none means base. `shadow`: also measure
    every token against base. `noise`: rows of one number share their random numbers. `alpha` and `prompt` are
    handed through to the completion.
    """

    prompt_ids: tuple[int, ...]
    coefficients_L: Tensor | None = None
    shadow: bool = False
    alpha: float = 0.0
    noise: int = 0
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Lane:
    """One row of the batch. `follows`: the lane whose tokens this shadow reads instead of drawing its own."""

    prompt_ids: tuple[int, ...]
    coefficients_L: Tensor
    noise: int = 0
    follows: int | None = None

    @property
    def steered(self) -> bool:
        return bool(self.coefficients_L.any())

    @property
    def key(self) -> tuple[tuple[int, ...], bytes, int]:
        return self.prompt_ids, self.coefficients_L.numpy().tobytes(), self.noise


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows that are equal in all that matters share one lane; a shadow of a base row is the row itself."""

    lanes: list[Lane] = field(default_factory=list)
    rows_of_lane: dict[int, list[int]] = field(default_factory=dict)
    shadow_of_lane: dict[int, int] = field(default_factory=dict)

    @property
    def writers(self) -> list[int]:
        """The lanes that draw tokens; they come before the shadows."""
        return [index for index, lane in enumerate(self.lanes) if lane.follows is None]


def plan(rows: Sequence[Row], n_layers: int) -> Plan:
    """The lanes that compute `rows`, shadows last. Errors: `SettingsError`."""
    made = Plan()
    known: dict[tuple[tuple[int, ...], bytes, int], int] = {}
    for index, row in enumerate(rows):
        lane = Lane(tuple(row.prompt_ids), _coefficients(row, n_layers), row.noise)
        number = known.setdefault(lane.key, len(made.lanes))
        if number == len(made.lanes):
            made.lanes.append(lane)
        made.rows_of_lane.setdefault(number, []).append(index)
    for number in made.writers:
        if any(rows[index].shadow for index in made.rows_of_lane[number]):
            made.shadow_of_lane[number] = _add_shadow(made, number)
    return made


def _add_shadow(made: Plan, number: int) -> int:
    lane = made.lanes[number]
    if not lane.steered:
        return number
    made.lanes.append(Lane(lane.prompt_ids, torch.zeros_like(lane.coefficients_L), lane.noise, number))
    return len(made.lanes) - 1


def _coefficients(row: Row, n_layers: int) -> Tensor:
    if not row.prompt_ids:
        raise SettingsError("The prompt is empty: give at least one token.")
    if row.coefficients_L is None:
        return torch.zeros(n_layers)
    coefficients_L = row.coefficients_L.detach().float().cpu().contiguous()
    if coefficients_L.shape != (n_layers,):
        raise SettingsError(
            f"The model has {n_layers} layers, the coefficients {tuple(coefficients_L.shape)}."
        )
    if not torch.isfinite(coefficients_L).all():
        raise SettingsError("A coefficient is not a finite number: choose another alpha.")
    return coefficients_L + 0.0  # -0.0 and 0.0 are one lane
