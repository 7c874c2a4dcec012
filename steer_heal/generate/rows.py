"""What is generated: rows as the caller asks for them, and the lanes of the batch that compute them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steer_heal.config import EVERYWHERE, SampleSettings, SettingsError

Key = tuple[tuple[int, ...], bytes, int, SampleSettings | None, str]
"""Prompt, coefficients, stream of random numbers, how tokens are drawn, and which of them are steered."""


@dataclass(frozen=True, eq=False)
class Row:
    """One answer to write.

    `coefficients_L`: what is added along each layer's direction, (L, M) where M vectors are mixed; none means
    base. `shadow`: also measure every token against base. `rng_stream`: rows of one number share their random
    numbers. `sample`: how this row is drawn, where not as the call says. `alpha` and `prompt` are handed
    through to the completion. `where`: its gate.
    """

    prompt_ids: tuple[int, ...]
    coefficients_L: Tensor | None = None
    shadow: bool = False
    alpha: float = 0.0
    rng_stream: int = 0
    prompt: str = ""
    sample: SampleSettings | None = None
    where: str = EVERYWHERE


@dataclass(frozen=True, eq=False)
class Lane:
    """One row of the batch. `writes`: whether it draws tokens, or only reads those of lanes it is base for.

    `n_more`: how many further lanes this one may become.
    """

    prompt_ids: tuple[int, ...]
    coefficients_L: Tensor
    rng_stream: int = 0
    writes: bool = True
    n_more: int = 0
    sample: SampleSettings | None = None
    where: str = EVERYWHERE

    @property
    def steered(self) -> bool:
        return bool(self.coefficients_L.any())

    @property
    def key(self) -> Key:
        steered = self.coefficients_L.numpy().tobytes()
        return self.prompt_ids, steered, self.rng_stream, self.sample, self.where


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows that are equal in all that matters share one lane.

    `shadow_of_lane`: the unsteered lane that each measured one begins beside, one for each prompt: as long as
    their tokens are the same, one base serves all. Lanes that write come first.
    """

    lanes: list[Lane] = field(default_factory=list)
    rows_of_lane: dict[int, list[int]] = field(default_factory=dict)
    shadow_of_lane: dict[int, int] = field(default_factory=dict)


def plan(rows: Sequence[Row], shape: tuple[int, ...]) -> Plan:
    """The lanes that compute `rows`; `shape` is that of a row's coefficients. Errors: `SettingsError`."""
    made = Plan()
    known: dict[Key, int] = {}
    for index, row in enumerate(rows):
        lane = Lane(tuple(row.prompt_ids), _coefficients(row, shape), row.rng_stream, sample=row.sample)
        lane = replace(lane, where=row.where) if lane.steered else lane
        number = known.setdefault(lane.key, len(made.lanes))
        if number == len(made.lanes):
            made.lanes.append(lane)
        made.rows_of_lane.setdefault(number, []).append(index)
    bases: dict[tuple[int, ...], int] = {}
    for number, lane in enumerate(made.lanes):
        if not lane.steered:
            bases.setdefault(lane.prompt_ids, number)
    for number in range(len(made.lanes)):
        if any(rows[index].shadow for index in made.rows_of_lane[number]):
            made.shadow_of_lane[number] = _shadow(made, bases, number)
    return made


def _shadow(made: Plan, bases: dict[tuple[int, ...], int], number: int) -> int:
    """The unsteered lane beside which lane `number` begins, made when there is none."""
    lane = made.lanes[number]
    if not lane.steered:
        return number
    base = bases.setdefault(lane.prompt_ids, len(made.lanes))
    if base == len(made.lanes):
        made.lanes.append(Lane(lane.prompt_ids, torch.zeros_like(lane.coefficients_L), writes=False))
    else:
        made.lanes[base] = replace(made.lanes[base], n_more=made.lanes[base].n_more + 1)
    return base


def _coefficients(row: Row, shape: tuple[int, ...]) -> Tensor:
    if not row.prompt_ids:
        raise SettingsError("The prompt is empty: give at least one token.")
    if row.coefficients_L is None:
        return torch.zeros(shape)
    coefficients_L = row.coefficients_L.detach().float().cpu().contiguous()
    if coefficients_L.shape != shape:
        raise SettingsError(
            f"A row's coefficients must be {shape} (layers, vectors), not {tuple(coefficients_L.shape)}."
        )
    if not torch.isfinite(coefficients_L).all():
        raise SettingsError("A coefficient is not a finite number: choose another alpha.")
    return coefficients_L + 0.0  # -0.0 and 0.0 are one lane
