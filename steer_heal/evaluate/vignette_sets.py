"""Vignettes by what a person names: a file, one of tinymfv's sets, or nothing for the material's own."""

from pathlib import Path

from steer_heal import data
from steer_heal.evaluate import tinymfv
from steer_heal.records import Vignette


def is_set(name: str) -> bool:
    """Whether it names a set of tinymfv's, and no file here."""
    return name in tinymfv.SETS and not Path(name).exists()


def vignettes(
    name: str | None, material: data.Material, *, condition: str | None = None, limit: int | None = None
) -> list[Vignette]:
    """Those `named`, or the material's own. Errors: `SettingsError`."""
    if name is None:
        return material.vignettes(condition=condition, limit=limit)
    return named(name, condition=condition, limit=limit)


def named(name: str, *, condition: str | None = None, limit: int | None = None) -> list[Vignette]:
    """The vignettes of a file, or of an installed tinymfv's set. Errors: `SettingsError`."""
    if not is_set(name):
        return data.vignettes(name, condition=condition, limit=limit)
    sides = data.CONDITIONS if condition is None else (condition,)
    rows = [row for side in sides for row in tinymfv.vignettes(name, side)]
    return rows if limit is None else data.balanced(rows, limit)
