"""A sweep of heal runs as it is kept: what varies, and which run each combination became."""

from typing import Any, Literal

from steer_heal.config.axes import Axes
from steer_heal.config.base import Settings

LOCAL = "local"
Draw = Literal["grid", "optuna"]
"""How the cells of a sweep are drawn: all combinations at once, or one by one as runs finish."""


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
