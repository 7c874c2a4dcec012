"""Sweeps on the page without a browser: what the form takes and says, the list, the table, the chart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from components import charts_sweep, sweeps, view_sweeps, watching
from steer_heal.config import LOCAL, MAX_SWEEP_RUNS, RunSweep, SettingsError, axes, heal_settings
from steer_heal.records import SweepForecast
from tests.fake_engine import FakeEngine
from tests.fake_runs import EXAMPLE
from tests.jobs import until

BASE = heal_settings("quick", model="demo", rounds=1)
EVIL = "<img src=x onerror='a()'>"


def started(engine: FakeEngine, *texts: str) -> RunSweep:
    return engine.sweeps.start(BASE, axes.parse(texts), budget=10)


def finished(engine: FakeEngine) -> FakeEngine:
    until(lambda: all(row.status == "finished" for row in engine.runs.rows()))
    return engine


def drawn(engine: FakeEngine, kept: Any) -> tuple[str, str, str | None]:
    return sweeps.draw(engine, engine.runs.rows(), kept)


def clicked(engine: FakeEngine, kept: Any, action: str, sweep: str) -> tuple[Any, str]:
    event = SimpleNamespace(_data={"action": action, "run": sweep})
    return sweeps.acting(engine)(kept, event)  # type: ignore[arg-type]


def test_axes_are_lines_and_a_budget_left_empty_is_said() -> None:
    assert sweeps.read("seed=0,1\n\n  train.lam = 1, 2 ", 4) == {"seed": [0, 1], "train.lam": [1, 2]}
    bad = (("seed=0..3", 3, "more than the 3"), ("seed=0", None, "1 to"), ("x=1", 9, "no setting"))
    for text, budget, said in bad:
        with pytest.raises(SettingsError, match=said):
            sweeps.read(text, budget)


def test_what_a_sweep_takes_is_said_beforehand_where_it_is_known() -> None:
    told = view_sweeps.takes(SweepForecast(9, (EVIL,), 2, 3, 750.0, 400_000_000, 7_900_000_000), LOCAL)
    for said in ("9 runs, 2 at a time.", "about 12 min", "0.4 GB a run; 7.9 GB are free", "1 cannot run"):
        assert said in told
    assert "<img" not in told
    there = view_sweeps.takes(SweepForecast(1, (), 4, 0, None, None, None), "ray://head:1")
    assert "1 run, 4 at a time on ray://head:1. Time: not known" in there
    assert "free" not in there


def test_a_sweep_is_listed_opened_shown_as_one_stopped_and_resumed() -> None:
    engine = FakeEngine(round_seconds=1e6)
    assert drawn(engine, None) == ("", "", None)
    sweep = started(engine, "seed=0,1")
    listed, table, figure = drawn(engine, None)
    assert ("2 running" in listed, table, figure) == (True, "", None)
    assert 'data-action="stop-sweep" data-sure="Cancel the runs of this sweep' in listed
    assert "resume-sweep" not in listed
    kept, said = clicked(engine, {"runs": [EXAMPLE]}, "show-sweep", sweep.sweep_id)
    assert (set(kept["runs"]), said) == ({EXAMPLE, *sweep.run_ids}, "")
    assert 'aria-checked="true"' in drawn(engine, kept)[0]
    assert clicked(engine, kept, "show-sweep", sweep.sweep_id)[0]["runs"] == [EXAMPLE]
    clicked(engine, kept, "stop-sweep", sweep.sweep_id)
    stopped = drawn(engine, None)[0]
    assert "2 cancelled" in stopped
    assert 'data-action="resume-sweep"' in stopped
    assert "stop-sweep" not in stopped
    clicked(engine, kept, "resume-sweep", sweep.sweep_id)
    assert "2 running" in drawn(engine, None)[0]
    kept, _ = clicked(engine, kept, "open-sweep", sweep.sweep_id)
    assert "nothing to compare" in drawn(engine, kept)[1]
    assert clicked(engine, kept, "open-sweep", sweep.sweep_id)[0]["sweep"] is None
    assert "sh-error" in clicked(engine, None, "stop-sweep", "../etc")[1]
    assert watching.remembered({"sweep": 3})["sweep"] is None


def test_the_front_is_what_no_other_equals_with_less_damage_or_more_movement() -> None:
    points = [(0.2, 0.5), (0.1, 0.3), (0.3, 0.5), (0.1, 0.2), (0.4, 0.6), (0.1, 0.3)]
    assert charts_sweep.front(points) == [1, 0, 4]
    assert charts_sweep.front([]) == []


def test_a_run_is_held_against_the_furthest_random_direction_of_its_own_trait() -> None:
    engine = FakeEngine()
    nodes, controls = engine.runs.map([EXAMPLE]), engine.runs.controls([EXAMPLE])
    target = {"Care": 1, "SocialNorms": -1}
    found = charts_sweep.held_against(nodes, controls, {"care_over_authority": target})
    assert found == pytest.approx({"random": 0.045, "persona": 0.5})
    assert charts_sweep.held_against(nodes, controls, {}) == {}


def test_what_a_person_wrote_is_no_markup() -> None:
    engine = FakeEngine(round_seconds=0.01)
    varied = {"trait": [EVIL, "care_over_authority", {"{0}": EVIL}]}
    made = finished(engine).sweeps.start(BASE, varied, budget=MAX_SWEEP_RUNS)
    finished(engine)
    listed, table, figure = drawn(engine, {"sweep": made.sweep_id})
    assert "&lt;img" in table
    assert "<img" not in listed + table + (figure or "")
