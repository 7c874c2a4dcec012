"""A sweep of heal runs: its axes, which settings vary over which values, and how it is kept."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain, product
from math import prod
from typing import Any, Literal

from steer_heal.config.base import MAX_QUEUED_RUNS, Settings, SettingsError
from steer_heal.config.healing import HealSettings, changed, describe_settings, json_or_text

MAX_SWEEP_RUNS = MAX_QUEUED_RUNS
MAX_DRAWN_VALUES = 1000
"""Of one axis, where cells are drawn from them."""
SEED = "seed"
"""The axis that repeats a setting rather than being one."""
LOCAL = "local"
Draw = Literal["grid", "optuna"]
"""How the cells of a sweep are drawn: all combinations at once, or one by one as runs finish."""
_PLAIN = ("model", "trait", "rounds", SEED, "band")
_RANGE = re.compile(r"(\d{1,10})\.\.(\d{1,10})")

Axes = dict[str, list[Any]]


class Cell(Settings):
    """One combination of the axes' values: its run, or why it cannot run; neither before it is started."""

    values: dict[str, Any]
    run_id: str = ""
    skipped: str = ""


class RunSweep(Settings):
    """What `runs/sweeps/<id>.json` holds. `at`: when it was made, in seconds since the epoch; `base`: the
    settings that its cells change; `cluster`: where its runs are."""

    sweep_id: str
    at: float
    cluster: str = LOCAL
    base: dict[str, Any]
    axes: Axes
    budget: int
    draw: Draw = "grid"
    cells: tuple[Cell, ...]

    @property
    def run_ids(self) -> list[str]:
        """Of the cells that have a run."""
        return [cell.run_id for cell in self.cells if cell.run_id]


def parse(texts: Iterable[str], budget: int = MAX_SWEEP_RUNS, *, drawn: bool = False) -> Axes:
    """Lines such as `train.divergence=nll,kl_rev` and `seed=0..4` as values by setting.

    Values are JSON, or text where they are none; `0..4` is 0, 1, 2, 3, 4. Errors: `SettingsError` for no
    setting, one that is given twice, no value or the same one twice, and a grid of more than `budget` cells
    unless they are `drawn` from it.
    """
    parts: dict[str, list[Sequence[Any]]] = {}
    for text in texts:
        name, equals, values = (piece.strip() for piece in text.partition("="))
        if not equals or not name:
            raise SettingsError(f"{text[:80]!r} is no axis: give one like train.divergence=nll,kl_rev.")
        if name in parts:
            raise SettingsError(f"{name} is an axis twice: give all its values at once.")
        parts[_known(name)] = _parts(values)
    if not parts:
        raise SettingsError("A sweep needs an axis: give one like seed=0..4.")
    sizes = [sum(map(len, some)) for some in parts.values()]
    count = prod(sizes)
    if not 0 < budget <= MAX_SWEEP_RUNS:
        raise SettingsError(f"A sweep has 1 to {MAX_SWEEP_RUNS} runs, not {budget}: give another budget.")
    if drawn and max(sizes) > MAX_DRAWN_VALUES:
        raise SettingsError(f"An axis has {max(sizes):,} values: give it at most {MAX_DRAWN_VALUES}.")
    if count > budget and not drawn:
        raise SettingsError(f"{count:,} runs are more than the {budget} allowed: give the axes fewer values.")
    axes = {name: [*chain(*some)] for name, some in parts.items()}
    for name, values in axes.items():
        if not values or any(value in values[:place] for place, value in enumerate(values)):
            what = "has a value twice: give each once" if values else "has no value: give one or more"
            raise SettingsError(f"The axis {name} {what}.")
    return axes


def cells(axes: Axes) -> list[dict[str, Any]]:
    """The grid: one value of each axis, in every combination; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def applied(base: HealSettings, values: dict[str, Any]) -> HealSettings:
    """One cell's settings. Errors: `SettingsError` for a value that its setting cannot have."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        part, _, key = name.rpartition(".")
        (changes.setdefault(part, {}) if part else changes)[key] = value
    return changed(base, **changes)


def in_words(values: dict[str, Any]) -> str:
    """`train.divergence=nll seed=0`."""
    return told({name: [value] for name, value in values.items()})


def told(axes: Axes) -> str:
    """`train.divergence=nll,kl_rev seed=0,1`."""
    texts = {
        name: ",".join(value if isinstance(value, str) else json.dumps(value) for value in values)
        for name, values in axes.items()
    }
    return " ".join(f"{name}={text}" for name, text in texts.items())


def _known(name: str) -> str:
    known = [*_PLAIN, *(setting for setting, _, _ in describe_settings())]
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    hint = f"perhaps {near[0]}" if near else f"such as {', '.join(_PLAIN)} or train.lam"
    raise SettingsError(f"The axis {name[:80]!r} names no setting: give one, {hint}.")


def _parts(text: str) -> list[Sequence[Any]]:
    with suppress(ValueError, RecursionError):
        return [json.loads(f"[{text}]")]
    return [_span(part.strip()) for part in text.split(",")]


def _span(text: str) -> Sequence[Any]:
    ends = _RANGE.fullmatch(text)
    return range(int(ends[1]), int(ends[2]) + 1) if ends else [json_or_text(text)]
