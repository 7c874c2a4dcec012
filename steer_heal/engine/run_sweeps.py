"""Sweeps of heal runs: each a file of settings and run ids, each of its cells an ordinary run."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steer_heal.config import (
    LOCAL,
    MAX_QUEUED_RUNS,
    MAX_RUN_NAME_CHARS,
    Cell,
    Draw,
    HealSettings,
    RunSweep,
    SettingsError,
    axes,
    changed,
    check_run_id,
    stored_settings,
)
from steer_heal.engine import optuna_draw, sweep_table
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.sweep_forecast import forecast
from steer_heal.records import SweepCell, SweepForecast, SweepTable
from steer_heal.runs.jobs import JobState
from steer_heal.runs.jobs.processes import memory
from steer_heal.runs.validate import check, run_bytes
from steer_heal.whole_file import write_whole

GOING = ("queued", "running", "paused")


class RunSweeps:
    """The sweeps in a folder of runs. Bad input raises `SettingsError`. `sound` checks the settings of a run
    on this machine and gives them back, as they are then launched."""

    def __init__(
        self, index: RunIndex, runs_dir: str | Path, *, sound: Callable[[HealSettings], HealSettings] = check
    ) -> None:
        self._index, self._folder, self._sound = index, Path(runs_dir) / "sweeps", sound

    @property
    def address(self) -> str:
        """Where runs go: `LOCAL`, or a cluster's address."""
        return self._index.launcher.address

    def forecast(self, base: HealSettings, varied: axes.Axes) -> SweepForecast:
        """What starting it would take."""
        cells, wanted = self._tried(base, axes.cells(varied))
        skipped = [f"{axes.in_words(cell.values)}: {cell.skipped}" for cell in cells if cell.skipped]
        left = memory()["left"] if self.address == LOCAL else None
        sizes = [run_bytes(settings) for settings in wanted]
        at_once = self._index.launcher.places()
        return forecast(wanted, skipped, self._index.rows(), sizes, at_once=at_once, left=left)

    def start(
        self,
        base: HealSettings,
        varied: axes.Axes,
        *,
        budget: int = axes.MAX_SWEEP_RUNS,
        draw: Draw = "grid",
    ) -> RunSweep:
        """Queues a run for each cell that can run; the others keep why not. Nothing is made when none can.
        Where Optuna draws the cells, the first ones."""
        cells: tuple[Cell, ...] = ()
        if draw == "optuna":
            optuna_draw.check(varied)
        else:
            cells = tuple(self._tried(base, axes.cells(varied))[0])
            if all(cell.skipped for cell in cells):
                raise SettingsError(f"No cell of the sweep can run: {cells[0].skipped}")
        launcher = self._index.launcher
        waiting = sum(launcher.poll(run_id).status == "queued" for run_id in launcher.runs())
        if waiting + len(cells) > MAX_QUEUED_RUNS:
            raise SettingsError(
                f"{waiting} runs are waiting already, and {MAX_QUEUED_RUNS} may: cancel some, or make a "
                f"sweep of fewer than {len(cells)}."
            )
        now = time.time()
        sweep_id = f"sweep-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(2)}"
        made = RunSweep(
            sweep_id=sweep_id, at=now, cluster=self.address, base=base.model_dump(mode="json"), axes=varied,
            budget=budget, draw=draw, cells=cells,
        )  # fmt: skip
        return self.more(self._begin(made))

    def more(self, sweep: RunSweep) -> RunSweep:
        """Where Optuna draws the cells: starts as many more as there are places free, by what those that
        finished came to; none while a run of it is cancelled or cannot be heard of. Else as it is."""
        if sweep.draw != "optuna":
            return sweep
        states, found = self.states(sweep), {row["run_id"]: row for row in self.table(sweep).last}
        stopped = any(state is not None and state.status == "cancelled" for state in states)
        if stopped or self._index.message():  # who is not heard of may be at work
            return sweep
        tried = [
            optuna_draw.Tried(
                cell.values,
                bool(cell.skipped) or state is None or state.status not in GOING,
                _found(found.get(cell.run_id)),
            )
            for cell, state in zip(sweep.cells, states, strict=True)
        ]
        base = stored_settings(json.dumps(sweep.base))[0]
        free = max(1, self._index.launcher.places()) - sum(not one.ended for one in tried)
        while free > 0 and len(tried) < sweep.budget:
            values = optuna_draw.drawn(sweep.axes, tried, base.seed)
            if values is None:
                break
            (cell,), _ = self._tried(base, [values])
            sweep = self._begin(sweep.model_copy(update={"cells": (*sweep.cells, cell)}))
            tried.append(optuna_draw.Tried(values, bool(cell.skipped), None))
            free -= not cell.skipped
        return sweep

    def all(self) -> list[RunSweep]:
        """The newest first."""
        found = [self.find(path.stem) for path in self._folder.glob("*.json")]
        return sorted(found, key=lambda sweep: -sweep.at)

    def find(self, sweep_id: str) -> RunSweep:
        """The sweep of that id."""
        try:
            return RunSweep.model_validate_json(self._file(check_run_id(sweep_id)).read_bytes())
        except FileNotFoundError as error:
            raise SettingsError(f"There is no sweep {sweep_id}: copy an id from `sweep list`.") from error
        except (OSError, ValidationError) as error:
            raise SettingsError(f"{self._file(sweep_id)} cannot be read: it is no sweep of ours.") from error

    def states(self, sweep: RunSweep) -> list[JobState | None]:
        """How each cell's run stands; None for one that has none (any more)."""
        here = set(self._index.launcher.runs())
        return [
            self._index.launcher.poll(cell.run_id) if cell.run_id in here else None for cell in sweep.cells
        ]

    def table(self, sweep: RunSweep) -> SweepTable:
        """How its cells stand, and what those that finished come to."""
        states = zip(sweep.cells, self.states(sweep), strict=True)
        cells = [
            SweepCell(cell.values, cell.run_id, state.status, state.message)
            if state
            else SweepCell(cell.values, cell.run_id, "skipped" if cell.skipped else "none", cell.skipped)
            for cell, state in states
        ]
        return sweep_table.table(cells, self._index.sweep_cells(sweep.sweep_id))

    def stop(self, sweep: RunSweep) -> int:
        """Cancels the runs that have not ended; gives how many."""
        return self._each(sweep, GOING, self._index.cancel)

    def resume(self, sweep: RunSweep) -> RunSweep:
        """Goes on with what was paused or did not finish, and starts what has not been started or was
        deleted, where runs are now: that may be elsewhere than before."""
        self._each(sweep, ("paused", "cancelled", "failed", "interrupted"), self._index.resume)
        states = self.states(sweep)
        known = self._started(sweep) if None in states else {}
        cells = [
            cell if state else cell.model_copy(update={"run_id": known.get(place, "")})
            for place, (cell, state) in enumerate(zip(sweep.cells, states, strict=True))
        ]
        return self.more(
            self._begin(sweep.model_copy(update={"cells": tuple(cells), "cluster": self.address}))
        )

    def _each(self, sweep: RunSweep, status: tuple[str, ...], act: Callable[[str], None]) -> int:
        states = zip(sweep.cells, self.states(sweep), strict=True)
        chosen = [cell.run_id for cell, state in states if state and state.status in status]
        for run_id in chosen:
            if self._index.launcher.poll(run_id).status in status:  # it may have ended meanwhile
                act(run_id)
        return len(chosen)

    def _started(self, sweep: RunSweep) -> dict[int, str]:
        """By cell the run whose log says that it is of this sweep: one may have been started without being
        noted, when whoever did was killed."""
        found = {}
        for run_id in self._index.launcher.runs():
            log = self._index.launcher.events(run_id).events
            said = log[0].data.get("sweep") if log else None
            if isinstance(said, dict) and said.get("id") == sweep.sweep_id:
                found[said.get("cell")] = run_id
        return found

    def _begin(self, sweep: RunSweep) -> RunSweep:
        """Starts what has no run; the file says so after each."""
        self._write(sweep)
        base = stored_settings(json.dumps(sweep.base))[0]
        for place, cell in enumerate(sweep.cells):
            if cell.run_id or cell.skipped:
                continue
            told = axes.in_words(cell.values)
            name = f"{base.name}: {told}" if base.name else told
            sound = self._sound(axes.applied(base, cell.values))
            settings = changed(sound, name=name[:MAX_RUN_NAME_CHARS])
            about = {"sweep": {"id": sweep.sweep_id, "cell": place, "values": cell.values}}
            begun = cell.model_copy(update={"run_id": self._index.start(settings, about)})
            cells = (*sweep.cells[:place], begun, *sweep.cells[place + 1 :])
            sweep = sweep.model_copy(update={"cells": cells})
            self._write(sweep)
        return sweep

    def _tried(
        self, base: HealSettings, combinations: Sequence[dict[str, Any]]
    ) -> tuple[list[Cell], list[HealSettings]]:
        """A cell for each, which keeps why it cannot run; and the settings of those that can."""
        cells, runs = [], []
        for values in combinations:
            try:
                runs.append(self._sound(axes.applied(base, values)))
                cells.append(Cell(values=values))
            except SettingsError as error:
                cells.append(Cell(values=values, skipped=str(error)))
        unfit = self._index.launcher.unfit(runs) if runs else []
        told = iter(unfit)
        cells = [cell if cell.skipped else Cell(values=cell.values, skipped=next(told)) for cell in cells]
        return cells, [settings for settings, said in zip(runs, unfit, strict=True) if not said]

    def _file(self, sweep_id: str) -> Path:
        return self._folder / f"{sweep_id}.json"

    def _write(self, sweep: RunSweep) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(sweep.sweep_id), sweep.model_dump_json(indent=1))
        except OSError as error:
            why = error.strerror or error
            raise SettingsError(
                f"Cannot write {self._folder} ({why}): choose another with --runs."
            ) from error


def _found(row: dict[str, Any] | None) -> tuple[float, float] | None:
    """Movement and damage of a run that finished."""
    if row is None or row["movement"] is None or row["neutral_kl"] is None:
        return None
    return row["movement"], row["neutral_kl"]
