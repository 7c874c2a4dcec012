"""Vignettes by what a person names: a file, one of tinymfv's sets, or nothing for the bundled ones."""

from __future__ import annotations

from pathlib import Path

from .. import data
from ..records import Vignette
from . import tinymfv


def is_set(name: str | None) -> bool:
    """Whether it names a set of tinymfv's, and no file here."""
    return name in tinymfv.SETS and not Path(str(name)).exists()


def vignettes(
    name: str | None = None, *, condition: str | None = None, limit: int | None = None
) -> list[Vignette]:
    """`data.vignettes` of a file, or of an installed tinymfv's set. Errors: `SettingsError`."""
    if name is None or not is_set(name):
        return data.vignettes(name, condition=condition, limit=limit)
    sides = data.CONDITIONS if condition is None else (condition,)
    rows = [row for side in sides for row in tinymfv.vignettes(name, side)]
    return rows if limit is None else data.balanced(rows, limit)
