"""Cells drawn one by one: without Optuna a sentence, with it a search that is the same each time."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from steer_heal.config import SettingsError, axes, heal_settings
from steer_heal.engine.optuna_draw import Tried, check, drawn
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import GOING, RunSweeps
from steer_heal.runs.store import Store
from tests.jobs import until

VARIED: axes.Axes = {"train.lam": [4, 1, 2, 3], "train.divergence": ["nll", "kl_rev"]}


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"pip install 'steer-heal\[optuna\]'"):
        check(VARIED)


def test_a_seed_is_nothing_to_draw():
    with pytest.raises(SettingsError, match="leave the axis seed out"):
        check({"seed": [0, 1]})


def test_a_grid_beyond_the_budget_can_be_drawn_from():
    lines = [f"train.lam={','.join(map(str, range(500)))}", "train.tau=0,1"]
    with pytest.raises(SettingsError, match="1,000 runs"):
        axes.parse(lines)
    assert len(axes.parse(lines, 3, drawn=True)["train.lam"]) == 500
    with pytest.raises(SettingsError, match="100,000 values"):
        axes.parse(["rounds=0..99999"], drawn=True)


def outcome(values: dict[str, Any]) -> tuple[float, float]:
    """More movement and less damage at lam 2."""
    return 1.0 - abs(values["train.lam"] - 2), abs(values["train.lam"] - 2)


def test_every_cell_is_drawn_once_and_the_same_way_each_time():
    pytest.importorskip("optuna")
    runs = []
    for _ in range(2):
        tried: list[Tried] = []
        while values := drawn(VARIED, tried, seed=3):
            failed = values["train.lam"] == 4
            tried.append(Tried(values, True, None if failed else outcome(values)))
        runs.append([one.values for one in tried])
    assert runs[0] == runs[1]
    assert sorted(map(str, runs[0])) == sorted(map(str, axes.cells(VARIED)))
    going = [Tried(runs[0][0], False, None)]
    assert drawn(VARIED, going, seed=3) != runs[0][0]


def test_a_sweep_is_drawn_as_runs_finish_and_not_while_one_is_cancelled(jobs, tmp_path):
    pytest.importorskip("optuna")
    index = RunIndex(jobs, Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0)
    sweeps = RunSweeps(index, jobs.runs_dir)
    made = sweeps.start(heal_settings(model="demo", rounds=1), VARIED, budget=3, draw="optuna")
    assert len(made.cells) == 1
    assert sweeps.more(made) == made, "there is one place"

    def grown() -> bool:
        index.watermark()
        sweep = sweeps.more(sweeps.find(made.sweep_id))
        states = [state.status for state in sweeps.states(sweep) if state]
        return len(sweep.cells) == 3 and not set(states) & set(GOING)

    until(grown)
    values = [cell.values for cell in sweeps.find(made.sweep_id).cells]
    assert all(one not in values[:place] for place, one in enumerate(values))
    hanging = sweeps.start(heal_settings(model="demo", name="hang"), VARIED, draw="optuna")
    sweeps.stop(hanging)
    until(lambda: [state and state.status for state in sweeps.states(hanging)] == ["cancelled"])
    assert sweeps.more(hanging) == hanging
