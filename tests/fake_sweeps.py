"""Fake sweeps over fake runs: each cell is one of them; what they come to is worked out as it really is."""

import time
from typing import Any

from steer_heal.config import LOCAL, Cell, HealSettings, RunSweep, SettingsError, axes
from steer_heal.engine import sweep_table
from steer_heal.records import SweepCell, SweepForecast, SweepTable
from tests.fake_runs import FakeRuns


class FakeSweeps:
    """What `components.engine.RunSweeps` asks for."""

    address = LOCAL

    def __init__(self, runs: FakeRuns) -> None:
        self._runs = runs
        self._all: dict[str, RunSweep] = {}

    def forecast(self, base: HealSettings, varied: axes.Axes) -> SweepForecast:
        n = len(axes.cells(varied))
        return SweepForecast(n, (), 1, 2, 90.0 * n * base.rounds, 400_000_000, 8_000_000_000)

    def start(self, base: HealSettings, varied: axes.Axes, *, budget: int) -> RunSweep:
        cells = []
        for values in axes.cells(varied):
            try:
                name = {"name": axes.in_words(values)}
                run_id = self._runs.start(axes.applied(base, values).model_copy(update=name))
                cells.append(Cell(values=values, run_id=run_id))
            except SettingsError as error:
                cells.append(Cell(values=values, skipped=str(error)))
        made = RunSweep(
            sweep_id=f"sweep-{len(self._all)}", at=time.time(), base=base.model_dump(mode="json"),
            axes=varied, budget=budget, cells=tuple(cells),
        )  # fmt: skip
        self._all[made.sweep_id] = made
        return made

    def all(self) -> list[RunSweep]:
        return list(reversed(self._all.values()))

    def find(self, sweep_id: str) -> RunSweep:
        if sweep_id not in self._all:
            raise SettingsError(f"There is no sweep {sweep_id}: copy an id from `sweep list`.")
        return self._all[sweep_id]

    def table(self, sweep: RunSweep) -> SweepTable:
        runs = {row.run_id: row for row in self._runs.rows()}
        cells = [
            SweepCell(
                cell.values, cell.run_id, runs[cell.run_id].status if cell.run_id else "skipped", cell.skipped
            )
            for cell in sweep.cells
        ]
        rounds: list[dict[str, Any]] = []
        for cell in sweep.cells:
            for node in self._runs.map([cell.run_id]) if cell.run_id else []:
                if node.stage == "healed" and node.care is not None:
                    found = dict.fromkeys(sweep_table.READINGS) | {"care": node.care}
                    found |= {
                        "movement": node.care - 0.2,
                        "neutral_kl": 0.1 * node.round + 0.01 * len(rounds),
                        "varied": cell.values,
                    }
                    about = {"run_id": cell.run_id, "round": node.round, "seed": node.seed}
                    rounds.append({**found, **about, "status": runs[cell.run_id].status})
        return sweep_table.table(cells, rounds)

    def stop(self, sweep: RunSweep) -> int:
        runs = {row.run_id: row.status for row in self._runs.rows()}
        going = [run_id for run_id in sweep.run_ids if runs[run_id] == "running"]
        for run_id in going:
            self._runs.cancel(run_id)
        return len(going)

    def resume(self, sweep: RunSweep) -> RunSweep:
        runs = {row.run_id: row.status for row in self._runs.rows()}
        for run_id in sweep.run_ids:
            if runs[run_id] == "cancelled":
                self._runs.resume(run_id)
        return sweep
