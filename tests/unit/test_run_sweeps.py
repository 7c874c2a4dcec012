"""Sweeps: cells are ordinary runs, bad ones are skipped, what was cut short goes on, and the store tells."""

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from steer_heal.config import MAX_QUEUED_RUNS, HealSettings, SettingsError, axes, heal_settings
from steer_heal.engine.optuna_draw import Tried, check, drawn
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import GOING, RunSweeps
from steer_heal.engine.sweep_forecast import forecast
from steer_heal.engine.sweep_table import READINGS, differences, groups, last_rounds
from steer_heal.records import SweepDifference
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store
from tests.fake_engine import FakeEngine
from tests.jobs import COMMAND, until

BASE = heal_settings(model="demo", rounds=1)


@pytest.fixture
def index(tmp_path, jobs):
    return RunIndex(jobs, Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0)


@pytest.fixture
def sweeps(index, jobs):
    return RunSweeps(index, jobs.runs_dir)


def varied(*texts: str) -> axes.Axes:
    return axes.parse(texts)


def finish(index: RunIndex, sweeps: RunSweeps, sweep_id: str) -> list[str]:
    def stand() -> list[str]:
        index.watermark()
        return [state.status for state in sweeps.states(sweeps.find(sweep_id)) if state]

    until(lambda: not {"queued", "running"} & set(stand()))
    return stand()


def test_each_cell_is_a_run_of_its_own_and_the_store_tells_of_it(index, sweeps, tmp_path):
    made = sweeps.start(BASE, varied("train.divergence=nll,kl_rev", "seed=3"))
    assert finish(index, sweeps, made.sweep_id) == ["finished", "finished"]
    assert sweeps.find(made.sweep_id) == made
    assert [sweep.sweep_id for sweep in sweeps.all()] == [made.sweep_id]
    runs = {row.run_id: row for row in index.rows()}
    names = [runs[cell.run_id].name for cell in made.cells]
    assert names == ["train.divergence=nll seed=3", "train.divergence=kl_rev seed=3"]
    assert index.settings(made.cells[1].run_id).train.divergence == "kl_rev"

    rows = index.store.sweep_cells(made.sweep_id)
    assert [(row["cell"], row["run_id"], row["round"]) for row in rows] == [
        (place, cell.run_id, 1) for place, cell in enumerate(made.cells)
    ]
    assert rows[0]["varied"] == {"train.divergence": "nll", "seed": 3}
    assert (rows[0]["movement"], rows[0]["retention"], rows[0]["care"]) == (0.5, 0.81, 0.33)
    anew = RunIndex(index.launcher, Store(tmp_path / "anew.duckdb"), example=None, every_s=0.0)
    anew.watermark()
    assert anew.store.sweep_cells(made.sweep_id) == rows


def test_a_cell_that_cannot_run_is_skipped_and_the_others_go_on(index, sweeps):
    made = sweeps.start(BASE, varied("train.divergence=nll,nonsense", "model=demo,nowhere"))
    skipped = [cell.skipped for cell in made.cells]
    assert skipped[0] == ""
    assert "nowhere" in skipped[1]
    assert "train.divergence" in skipped[2]
    assert finish(index, sweeps, made.sweep_id) == ["finished"]
    assert sweeps.resume(made) == made


def test_a_sweep_of_which_nothing_can_run_or_too_much_would_wait_makes_nothing(sweeps, jobs):
    with pytest.raises(SettingsError, match="No cell of the sweep can run"):
        sweeps.start(BASE, varied("train.epochs=0,-1"))
    jobs.create(BASE)
    with pytest.raises(SettingsError, match="1 runs are waiting already"):
        sweeps.start(BASE, varied(f"seed=1..{MAX_QUEUED_RUNS}"))
    assert sweeps.all() == []
    assert len(jobs.runs()) == 1


def test_a_sweep_is_forecast_by_what_finished_here_and_read_as_one_table(index, sweeps):
    assert (sweeps.forecast(BASE, varied("seed=0,1")).known, sweeps.all()) == (0, [])
    made = sweeps.start(BASE, varied("seed=0,1", "train.epochs=1,-1"))
    finish(index, sweeps, made.sweep_id)
    told = sweeps.forecast(BASE, varied("seed=0,1,2", "train.epochs=1,-1"))
    assert (told.runs, len(told.skipped), told.known) == (3, 3, 2)
    assert told.seconds is not None
    found = sweeps.table(made)
    assert [cell.status for cell in found.cells] == ["finished", "skipped", "finished", "skipped"]
    assert "train.epochs" in found.cells[1].message
    assert [len(group.seeds) for group in found.groups] == [2]
    assert found.document()["groups"][0]["mean"]["movement"] == 0.5


def test_settings_are_checked_as_who_makes_the_sweeps_says(index, jobs):
    def refuses(settings: HealSettings) -> HealSettings:
        if settings.seed:
            raise SettingsError("seeds are not liked here: leave them out.")
        return settings

    made = RunSweeps(index, jobs.runs_dir, sound=refuses).start(BASE, varied("seed=0,1"))
    assert [bool(cell.run_id) for cell in made.cells] == [True, False]
    assert "not liked" in made.cells[1].skipped
    finish(index, RunSweeps(index, jobs.runs_dir), made.sweep_id)


def test_stopped_it_goes_on_where_it_was(index, sweeps):
    made = sweeps.start(heal_settings(model="demo", name="hang"), varied("seed=0,1"))
    assert sweeps.stop(made) == 2
    assert finish(index, sweeps, made.sweep_id) == ["cancelled", "cancelled"]
    assert sweeps.stop(made) == 0
    sweeps.resume(made)
    assert [state and state.status in ("queued", "running") for state in sweeps.states(made)] == [True, True]
    sweeps.stop(made)
    finish(index, sweeps, made.sweep_id)


def test_a_deleted_cell_and_one_started_unnoted_are_not_lost_and_not_doubled(index, sweeps, jobs):
    made = sweeps.start(BASE, varied("seed=0,1"))
    finish(index, sweeps, made.sweep_id)
    index.delete(made.cells[1].run_id)
    file = jobs.runs_dir / "sweeps" / f"{made.sweep_id}.json"
    document = json.loads(file.read_text())
    document["cells"][0]["run_id"] = ""
    file.write_text(json.dumps(document))
    again = sweeps.resume(sweeps.find(made.sweep_id))
    assert again.cells[0] == made.cells[0]
    assert again.cells[1].run_id not in ("", made.cells[1].run_id)
    assert finish(index, sweeps, made.sweep_id) == ["finished", "finished"]


def test_a_file_that_is_no_sweep_and_one_that_is_not_there_are_said(sweeps, jobs):
    (jobs.runs_dir / "sweeps").mkdir(parents=True)
    (jobs.runs_dir / "sweeps" / "sweep-1.json").write_text("{}")
    for sweep_id, said in (("sweep-1", "cannot be read"), ("sweep-2", "no sweep"), ("../x", "not a run id")):
        with pytest.raises(SettingsError, match=said):
            sweeps.find(sweep_id)


@pytest.mark.usefixtures("here")
def test_the_command_starts_waits_compares_lists_and_shows(run, told, monkeypatch):
    monkeypatch.setattr("steer_heal.cli.sweep.LocalProcesses", partial(LocalProcesses, command=COMMAND))
    monkeypatch.setattr("steer_heal.cli.sweep.LOOK_S", 0.05)
    arguments = ("sweep", "--model", "demo", "--axis", "train.lam=1,2,-1", "--axis", "seed=0,1")
    code, out, err = run(*arguments, "--rounds", "1", "--json")
    document = json.loads(out)
    assert code == 1  # two cells could not run
    assert "train.lam=-1 seed=0 is skipped: train.lam must be at least 0, not -1." in err
    assert [cell["status"] for cell in document["cells"]] == ["finished"] * 4 + ["skipped"] * 2
    assert [(group["values"], group["seeds"]) for group in document["groups"]] == [
        ({"train.lam": 1}, [0, 1]), ({"train.lam": 2}, [0, 1])
    ]  # fmt: skip
    assert document["groups"][0]["mean"]["movement"] == 0.5
    assert {one["verdict"] for one in document["differences"]} == {"no different"}

    code, out, _ = run("sweep", "table", document["sweep_id"])
    assert code == 0
    assert "no different" in out
    listed = told("sweep", "list")["sweeps"]
    assert [(one["sweep_id"], one["status"]) for one in listed] == [
        (document["sweep_id"], {"finished": 4, "skipped": 2})
    ]
    assert run("sweep", "resume", document["sweep_id"])[0] == 1
    assert run("sweep", "stop", document["sweep_id"])[0] == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "arguments",
    [
        ["stop"],
        ["table", "sweep-1"],
        ["table", "sweep-1", "--axis", "seed=1"],
        ["--axis", "seed=1", "--set", "seed=2"],
        ["--axis", "seed=1", "--seed", "2"],
        ["start", "sweep-1", "--axis", "seed=1"],
    ],
)
def test_a_command_that_says_too_little_or_too_much_is_refused(run, arguments):
    code, _, err = run("sweep", *arguments)
    assert (code, err.count("\n")) == (2, 1)


ROW = replace(
    FakeEngine().runs.rows()[0], is_example=False, model="demo", preset="quick", status="finished", round=2,
    started_at=0.0,
)  # fmt: skip
RUNS = [
    replace(ROW, run_id="a", finished_at=100.0),
    replace(ROW, run_id="b", finished_at=300.0),
    replace(ROW, run_id="example", finished_at=1e6, is_example=True),
    replace(ROW, run_id="going", finished_at=1e6, status="running"),
    replace(ROW, run_id="other", finished_at=1e6, model="other"),
]
TWO = heal_settings("quick", model="demo", rounds=2)


def test_time_is_rounds_by_the_median_pace_and_memory_the_most_that_one_needs() -> None:
    """Paces 50 and 150 s a round, in the median 100: six rounds, two at a time, are 300 s."""
    told = forecast([TWO] * 3, ["seed=-1: bad"], RUNS, [3, 5, 4], at_once=2, left=7)
    assert (told.runs, told.skipped, told.at_once, told.known) == (3, ("seed=-1: bad",), 2, 2)
    assert (told.seconds, told.n_bytes, told.left) == (300.0, 5, 7)
    assert forecast([TWO], [], RUNS, [3], at_once=16, left=7).seconds == 200.0


def test_where_a_model_has_not_finished_a_run_here_the_time_is_not_known() -> None:
    third = heal_settings("quick", model="third", rounds=1)
    told = forecast([TWO, third], [], RUNS, [3, None], at_once=1, left=7)
    assert (told.seconds, told.n_bytes) == (None, None)
    told = forecast([], [], RUNS, [], at_once=1, left=7)
    assert (told.runs, told.known, told.seconds, told.n_bytes) == (0, 0, None, None)


VARIED: axes.Axes = {"train.lam": [4, 1, 2, 3], "train.divergence": ["nll", "kl_rev"]}


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingsError, match=r"pip install 'steer-heal\[optuna\]'"):
        check(VARIED)


def test_a_grid_beyond_the_budget_can_be_drawn_from_and_a_seed_is_nothing_to_draw():
    with pytest.raises(SettingsError, match="leave the axis seed out"):
        check({"seed": [0, 1]})
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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=0..1,7", [0, 1, 7]),
        ("train.divergence=nll, kl_rev", ["nll", "kl_rev"]),
        ("band=[0.4,0.6],[0.2,0.8]", [[0.4, 0.6], [0.2, 0.8]]),
        ("model=demo,google/gemma-3-1b-it", ["demo", "google/gemma-3-1b-it"]),
        ("data.top_p=null,0.9", [None, 0.9]),
    ],
)
def test_values_are_json_text_or_a_span(text: str, values: list) -> None:
    assert axes.parse([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["train.divergance=nll"], "train.divergence"),
        (["train=1"], "names no setting"),
        (["name=a,b"], "names no setting"),
        (["seed"], "no axis"),
        ([], "needs an axis"),
        (["seed=0,1", "seed=2"], "twice"),
        (["seed=1,1"], "twice"),
        (["seed="], "no value"),
        (["seed=4..0"], "no value"),
        (["seed=0..99999"], "100,000 runs"),
        (["seed=0..9999999999", "train.lam=1,2"], "20,000,000,000 runs"),
    ],
)
def test_what_is_no_sweep_is_refused_in_a_sentence(texts: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        axes.parse(texts)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("budget", [0, 101, 3])
def test_a_budget_is_kept(budget: int) -> None:
    with pytest.raises(SettingsError):
        axes.parse(["seed=0..3"], budget)


def test_the_grid_has_every_combination_and_a_cell_is_settings() -> None:
    varied = axes.parse(["train.divergence=nll,kl_rev", "train.lam=2", "seed=0,1"])
    cells = axes.cells(varied)
    assert [axes.in_words(cell) for cell in cells] == [
        f"train.divergence={divergence} train.lam=2 seed={seed}"
        for divergence in ("nll", "kl_rev")
        for seed in (0, 1)
    ]
    assert axes.told(varied) == "train.divergence=nll,kl_rev train.lam=2 seed=0,1"
    base = heal_settings(model="demo", train={"epochs": 2})
    made = axes.applied(base, cells[-1])
    assert (made.train.divergence, made.train.lam, made.train.epochs, made.seed) == ("kl_rev", 2.0, 2, 1)
    with pytest.raises(SettingsError, match=r"train\.lam"):
        axes.applied(base, {"train.lam": -1})


def row(run: str, round_: int | None, seed: int, movement: float | None, **varied: object) -> dict:
    readings = dict.fromkeys(READINGS)
    cell = {"run_id": run, "round": round_, "seed": seed, "movement": movement, "status": "finished"}
    return {**readings, **cell, "varied": {**varied, "seed": seed}}


def test_a_run_counts_once_it_has_finished_and_by_its_last_round() -> None:
    going = {**row("c", 1, 2, 0.9), "status": "running"}
    rows = [row("a", 1, 0, 0.1), row("a", 2, 0, 0.2), row("b", None, 1, None), going]
    assert [found["movement"] for found in last_rounds(rows)] == [0.2]


def test_means_spreads_and_paired_differences_are_over_seeds() -> None:
    """Of three seeds, by hand: differences 0.1, 0.2, 0.3 have mean 0.2 and sd 0.1, t(2) is 4.303."""
    rows = [row(f"a{seed}", 1, seed, seed / 10, lam=1) for seed in range(3)]
    rows += [row(f"b{seed}", 1, seed, seed / 10 + (seed + 1) / 10, lam=2) for seed in range(3)]
    one, other = groups(rows)
    assert (one.values, one.seeds) == ({"lam": 1}, (0, 1, 2))
    assert one.mean["movement"] == pytest.approx(0.1)
    assert one.spread["movement"] == pytest.approx(0.1)
    assert one.mean["care"] is None
    (apart,) = differences(rows)
    half = 4.303 * 0.1 / 3**0.5
    assert (apart.axis, apart.reading, apart.n) == ("lam", "movement", 3)
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert apart.verdict == "no different"
    assert other.mean["movement"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.1, 0.05, 0.15, "higher"),
        (-0.1, -0.2, -0.05, "lower"),
        (0.0, 0.0, 0.0, "no different"),
        (0.1, None, None, "one seed tells nothing"),
    ],
)
def test_a_difference_in_a_word(mean: float, low: float | None, high: float | None, verdict: str) -> None:
    assert SweepDifference("lam", {}, {}, "movement", 2, mean, low, high).verdict == verdict


def test_settings_that_differ_in_two_axes_or_share_no_seed_are_not_compared() -> None:
    rows = [row("a", 1, 0, 0.1, lam=1, tau=0), row("b", 1, 0, 0.2, lam=2, tau=1)]
    assert differences(rows) == []
    assert differences([row("a", 1, 0, 0.1, lam=1), row("b", 1, 1, 0.2, lam=2)]) == []
    (apart,) = differences([row("a", 1, 0, 0.1, lam=1), row("b", 1, 0, 0.2, lam=2)])
    assert (apart.n, apart.low) == (1, None)
