"""The named endpoints about runs, for programs; see api.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

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


def actions(engine: Engine) -> list[Callable[..., Any]]:
    """What is asked of the runs."""
    return [*_beginning(engine), _watching(engine), *_going(engine), *_reading(engine), *_sweeping(engine)]


def _beginning(engine: Engine) -> list[Callable[..., Any]]:
    def launch(
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
        values["model"] = engine.info.name
        return engine.launch(heal_settings(preset, **{**(settings or {}), **values}))

    def clone(run_id: str, changes: dict | None = None) -> str:
        """Start a new run with the settings of another; gives its id.

        Args:
            run_id: Which run.
            changes: What is to be different, as {"seed": 1, "train": {"epochs": 3}}.
        """
        return engine.clone(run_id, changes)

    return [launch, clone]


def _watching(engine: Engine) -> Callable[..., Any]:
    def watch(run_id: str, seconds: float = 600.0) -> Iterator[dict]:
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
            mark = engine.runs.watermark()
            row = next((row for row in engine.runs.rows() if row.run_id == run_id), None)
            if row is None and (before or time.monotonic() - begun > UNSEEN_S):
                raise SettingsError(f"There is no run {run_id}.")
            if row is not None and mark != before:
                before = mark
                yield {**asdict(row), "nodes": [asdict(node) for node in engine.runs.map([run_id])]}
            if (row is not None and row.status in LAST) or time.monotonic() > until:
                return
            time.sleep(POLL_SECONDS)

    return watch


def _going(engine: Engine) -> list[Callable[..., Any]]:
    def cancel(run_id: str) -> str:
        """Ask a run to end after its step.

        Args:
            run_id: Which run.
        """
        engine.runs.cancel(run_id)
        return run_id

    def pause(run_id: str) -> str:
        """Let a run rest after its step, until it is resumed.

        Args:
            run_id: Which run.
        """
        engine.runs.pause(run_id)
        return run_id

    def resume(run_id: str) -> str:
        """Let a paused run go on, and one that ended early go on after its last finished round.

        Args:
            run_id: Which run.
        """
        engine.runs.resume(run_id)
        return run_id

    return [cancel, pause, resume]


def _reading(engine: Engine) -> list[Callable[..., Any]]:
    def runs() -> list[dict]:
        """All runs, the newest first."""
        return [asdict(row) for row in engine.runs.rows()]

    def moral_map(run_ids: list[str]) -> list[dict]:
        """The points of the map of some runs: Care, Social Norms and coherence of each round's stages.

        Args:
            run_ids: Which runs.
        """
        return [asdict(node) for node in engine.runs.map(run_ids)]

    return [runs, moral_map]


def _sweeping(engine: Engine) -> list[Callable[..., Any]]:
    def start_sweep(
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
        values = {"trait": trait, "rounds": rounds, "name": name, "model": engine.info.name}
        base = heal_settings(preset, **{**(settings or {}), **values})
        return engine.sweeps.start(base, parse(axes, budget), budget=budget).model_dump(mode="json")

    def list_sweeps() -> list[dict]:
        """All sweeps of runs, the newest first."""
        return [sweep.model_dump(mode="json") for sweep in engine.sweeps.all()]

    def sweep_table(sweep_id: str) -> dict:
        """How a sweep's runs stand; of those that finished means, spreads over seeds, and paired differences.

        Args:
            sweep_id: Which sweep.
        """
        sweep = engine.sweeps.find(sweep_id)
        return sweep.model_dump(mode="json") | engine.sweeps.table(sweep).document()

    def stop_sweep(sweep_id: str) -> int:
        """Cancel the runs of a sweep that have not ended; gives how many.

        Args:
            sweep_id: Which sweep.
        """
        return engine.sweeps.stop(engine.sweeps.find(sweep_id))

    def resume_sweep(sweep_id: str) -> dict:
        """Go on with a sweep's runs that did not finish, where the page's runs go; gives the sweep.

        Args:
            sweep_id: Which sweep.
        """
        return engine.sweeps.resume(engine.sweeps.find(sweep_id)).model_dump(mode="json")

    return [start_sweep, list_sweeps, sweep_table, stop_sweep, resume_sweep]
