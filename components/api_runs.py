"""The named endpoints about runs, for programs; see api.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict

from components.engine import Engine
from steer_heal.config import (
    DEFAULT_TRAIT,
    MAX_SWEEP_RUNS,
    SettingsError,
    check_run_id,
    heal_settings,
)
from steer_heal.config.axes import parse

POLL_SECONDS = 1.0
LAST = ("finished", "failed", "cancelled", "interrupted")
LONGEST_WATCH = 86_400.0
UNSEEN_S = 5.0
"""A run that was just launched may not be in the table yet; one that is not there for longer is none."""


class RunActions:
    """What is asked of the runs; each public method is an endpoint."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def launch(
        self,
        trait: str = DEFAULT_TRAIT,
        rounds: int = 3,
        preset: str = "quick",
        seed: int = 0,
        name: str = "",
        settings: dict | None = None,
        mix: str = "",
    ) -> str:
        """Start a heal run in the background; gives its id.

        Args:
            trait: Name of the axis to move along, and to measure.
            rounds: How many rounds.
            preset: quick or standard.
            seed: Of everything random in the run.
            name: What to call it.
            settings: Any other settings by group, as {"train": {"epochs": 3}}.
            mix: Instead of the trait's vector, as in steer; the trait is one that it adds.
        """
        values = {"trait": trait, "mix": mix, "rounds": rounds, "seed": seed, "name": name}
        values["model"] = self._engine.info.name
        return self._engine.launch(heal_settings(preset, **{**(settings or {}), **values}))

    def clone(self, run_id: str, changes: dict | None = None) -> str:
        """Start a new run with the settings of another; gives its id.

        Args:
            run_id: Which run.
            changes: What is to be different, as {"seed": 1, "train": {"epochs": 3}}.
        """
        return self._engine.clone(run_id, changes)

    def watch(self, run_id: str, seconds: float = 600.0) -> Iterator[dict]:
        """How a run stands, each time that changes, until it ends or the seconds are over.

        Args:
            run_id: What launch gave.
            seconds: How long to watch.
        """
        if not 0 <= seconds <= LONGEST_WATCH:
            raise SettingsError(f"seconds: watch for 0 to {LONGEST_WATCH:.0f} seconds.")
        begun, before = time.monotonic(), ""
        until = begun + seconds
        check_run_id(run_id)
        while True:
            mark = self._engine.runs.watermark()
            row = next((row for row in self._engine.runs.rows() if row.run_id == run_id), None)
            if row is None and (before or time.monotonic() - begun > UNSEEN_S):
                raise SettingsError(f"There is no run {run_id}.")
            if row is not None and mark != before:
                before = mark
                yield {**asdict(row), "nodes": [asdict(node) for node in self._engine.runs.map([run_id])]}
            if (row is not None and row.status in LAST) or time.monotonic() > until:
                return
            time.sleep(POLL_SECONDS)

    def cancel(self, run_id: str) -> str:
        """Ask a run to end after its step.

        Args:
            run_id: Which run.
        """
        self._engine.runs.cancel(run_id)
        return run_id

    def pause(self, run_id: str) -> str:
        """Let a run rest after its step, until it is resumed.

        Args:
            run_id: Which run.
        """
        self._engine.runs.pause(run_id)
        return run_id

    def resume(self, run_id: str) -> str:
        """Let a paused run go on, and one that ended early go on after its last finished round.

        Args:
            run_id: Which run.
        """
        self._engine.runs.resume(run_id)
        return run_id

    def runs(self) -> list[dict]:
        """All runs, the newest first."""
        return [asdict(row) for row in self._engine.runs.rows()]

    def moral_map(self, run_ids: list[str]) -> list[dict]:
        """The points of the map of some runs: Care, Social Norms and coherence of each round's stages.

        Args:
            run_ids: Which runs.
        """
        return [asdict(node) for node in self._engine.runs.map(run_ids)]

    def start_sweep(
        self,
        axes: list[str],
        trait: str = DEFAULT_TRAIT,
        rounds: int = 3,
        preset: str = "quick",
        budget: int = MAX_SWEEP_RUNS,
        name: str = "",
        settings: dict | None = None,
    ) -> dict:
        """Start a heal run for each combination of some settings' values; gives the sweep, with its id.

        Args:
            axes: What varies, as ["train.divergence=nll,kl_rev", "seed=0..4"].
            trait: Name of the axis to move along.
            rounds: How many rounds each run has.
            preset: quick or standard.
            budget: How many runs it may be at most.
            name: How the runs' names begin.
            settings: Any other settings by group, as {"train": {"epochs": 3}}.
        """
        values = {"trait": trait, "rounds": rounds, "name": name, "model": self._engine.info.name}
        base = heal_settings(preset, **{**(settings or {}), **values})
        return self._engine.sweeps.start(base, parse(axes, budget), budget=budget).model_dump(mode="json")

    def list_sweeps(self) -> list[dict]:
        """All sweeps of runs, the newest first."""
        return [sweep.model_dump(mode="json") for sweep in self._engine.sweeps.all()]

    def sweep_table(self, sweep_id: str) -> dict:
        """How a sweep's runs stand; of those that finished means, spreads over seeds, and paired differences.

        Args:
            sweep_id: Which sweep.
        """
        sweep = self._engine.sweeps.find(sweep_id)
        return sweep.model_dump(mode="json") | self._engine.sweeps.table(sweep).document()

    def stop_sweep(self, sweep_id: str) -> int:
        """Cancel the runs of a sweep that have not ended; gives how many.

        Args:
            sweep_id: Which sweep.
        """
        return self._engine.sweeps.stop(self._engine.sweeps.find(sweep_id))

    def resume_sweep(self, sweep_id: str) -> dict:
        """Go on with a sweep's runs that did not finish, where the page's runs go; gives the sweep.

        Args:
            sweep_id: Which sweep.
        """
        return self._engine.sweeps.resume(self._engine.sweeps.find(sweep_id)).model_dump(mode="json")
