"""The index of runs: new events are seen without asking twice, a held or foreign store stops nothing."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from steer_heal.config import HealSettings, SettingsError, heal_settings, stored_settings
from steer_heal.config.healing import RETIRED
from steer_heal.engine.run_index import EXAMPLE_ID, RunIndex
from steer_heal.engine.time_left import time_left
from steer_heal.runs import worker
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses, RunFolder, shelf, this_process
from steer_heal.runs.store import Store
from tests.jobs import COMMAND, until
from tests.runs import play_round, start, write_run
from tests.unit.test_store import hold


@pytest.fixture
def index(tmp_path, jobs):
    example = tmp_path / "example"
    write_run(example / "events.jsonl", name="example")
    return RunIndex(jobs, Store(tmp_path / "runs.duckdb", patience=0.1), example=example, every_s=0.0)


def test_the_example_is_there_at_once_and_marked(index):
    (run,) = index.rows()
    assert (run.run_id, run.is_example, run.status) == (EXAMPLE_ID, True, "finished")
    assert len(index.map([EXAMPLE_ID])) == 5
    assert all(node.is_example for node in index.map([EXAMPLE_ID]))


def test_the_watermark_changes_with_every_new_round_and_stands_still_otherwise(index, jobs):
    folder = jobs.create(heal_settings(model="demo", rounds=2), worker=this_process())
    marks = [index.watermark()]
    with EventLog(folder.log) as log:
        start(log, heal_settings(model="demo", rounds=2))
        for round_ in (1, 2):
            play_round(log, round_)
            marks.append(index.watermark())
            assert index.watermark() == marks[-1]
            assert max(node.round for node in index.map([folder.run_id])) == round_
    assert len(set(marks)) == 3


def test_a_run_whose_folder_is_gone_is_interrupted_not_running(index, jobs):
    folder = jobs.create(heal_settings(model="demo"), worker=this_process())
    with EventLog(folder.log) as log:
        start(log, heal_settings(model="demo"))
    assert index.rows()[0].status == "running"
    folder.path.rename(folder.path.with_name("moved away"))
    assert index.rows()[0].status == "interrupted"


def test_a_held_store_is_named_shows_the_last_known_and_catches_up(index, jobs):
    assert len(index.rows()) == 1
    with hold(index.store.path, read_only=False) as holder:
        folder = jobs.create(heal_settings(model="demo"), worker=this_process())
        mark = index.watermark()
        assert str(holder.pid) in index.message()
        assert len(index.rows()) == 1
        assert index.map(["anything"]) == []
        with pytest.raises(SettingsError, match="held"):
            index.round(EXAMPLE_ID, 1)
    assert index.watermark() != mark
    assert index.message() == ""
    assert [run.run_id for run in index.rows()] == [folder.run_id, EXAMPLE_ID]


def test_a_deleted_store_is_built_again_while_the_page_runs(index):
    run_id = index.start(heal_settings(model="demo", name="quick"))
    until(lambda: index.rows()[0].status == "finished")
    nodes = index.map([run_id, EXAMPLE_ID])
    index.store.path.unlink()
    assert index.map([run_id, EXAMPLE_ID]) == nodes


def test_a_foreign_file_is_said_and_left_alone(tmp_path):
    path = tmp_path / "runs.duckdb"
    path.write_text("something else")
    index = RunIndex(LocalProcesses(tmp_path / "runs", command=COMMAND), Store(path), every_s=0.0)
    assert index.rows() == []
    assert index.map(["x"]) == []
    assert "--db" in index.message()
    assert path.read_text() == "something else"


def test_a_run_is_renamed_and_hidden_without_touching_its_files(index, jobs):
    folder = jobs.create(heal_settings(model="demo", name="one"), worker=this_process())
    config, mark = (folder.path / "config.json").read_bytes(), index.watermark()
    index.rename(folder.run_id, " other ")
    index.hide(folder.run_id)
    assert index.watermark() != mark
    row = next(row for row in index.rows() if row.run_id == folder.run_id)
    assert (row.name, row.hidden) == ("other", True)
    assert (folder.path / "config.json").read_bytes() == config
    for wrong in ("  ", "x" * 81):
        with pytest.raises(SettingsError, match="1 to 80"):
            index.rename(folder.run_id, wrong)
    (folder.path.parent / "labels.json").write_text("[1]")  # somebody's own: no names, and no error
    assert next(row.name for row in index.rows() if row.run_id == folder.run_id) == "one"


def test_a_deleted_run_is_gone_with_its_folder_and_comes_back_for_a_minute(index, jobs, monkeypatch):
    run_id = index.start(heal_settings(model="demo", name="quick", rounds=1))
    with pytest.raises(SettingsError, match="cancel it before"):
        index.delete(run_id)
    until(lambda: index.rows()[0].status == "finished")
    path, nodes = jobs.folder(run_id).path, index.map([run_id])
    index.delete(run_id)
    assert not path.exists()
    assert [row.run_id for row in index.rows()] == [EXAMPLE_ID]
    assert index.map([run_id]) == []
    index.restore(run_id)
    assert index.map([run_id]) == nodes
    index.delete(run_id)
    monkeypatch.setattr(shelf, "UNDO_S", -1.0)
    index.watermark()
    with pytest.raises(SettingsError, match="is gone"):
        index.restore(run_id)


def test_what_is_counted_stands_in_the_row(index, jobs):
    folder = jobs.create(heal_settings(model="demo", rounds=2), worker=this_process())
    with EventLog(folder.log) as log:
        start(log, heal_settings(model="demo", rounds=2))
        log.append("progress", 1, {"stage": "generate", "done": 40, "total": 128, "rate": 2.5})
        row = index.rows()[0]
        assert (row.done, row.total, row.rate) == (40, 128, 2.5)
        log.append("stage", 1, {"stage": "filter"})
        assert index.rows()[0].done is None


def begun(round_, stage, at, seconds=None, own=True):
    return {"own": own, "round": round_, "stage": stage, "time": at, "seconds": seconds}


def test_time_left_is_what_the_stages_ahead_took_and_nothing_where_one_was_never_timed():
    took = {"extract": 10, "calibrate": 100, "generate": 20, "filter": 5, "train": 30, "evaluate": 40}
    first = [begun(0, "base", 0, 50), *(begun(1, stage, 50, s) for stage, s in took.items())]
    assert time_left(first[:1], 2, 60) is None
    assert time_left([*first, begun(2, "extract", 300)], 2, 301) is None, "the first round measures more"
    assert time_left([*first, begun(2, "generate", 300)], 2, 312) == 8 + 5 + 30 + 40
    assert time_left([*first, begun(2, "generate", 300)], 3, 312) is None
    other = [row | {"own": False} for row in [*first, begun(2, "extract", 0, 1), begun(2, "calibrate", 0, 9)]]
    assert time_left([*other, begun(0, "base", 1000)], 2, 1010) == 40 + 205 + 1 + 9 + 95
    assert time_left([*other, begun(0, "base", 1000)], 1, 1999) == 205, (
        "one that takes longer is near its end"
    )
    slow = [begun(1, "train", 0, 300)]
    assert time_left([*other, *slow, begun(1, "evaluate", 0)], 2, 0) == 40 + 1 + 9 + 20 + 5 + 300 + 40
    assert time_left(other, 2, 0) is None


def test_time_left_is_known_from_a_finished_run_that_does_as_much(index, jobs):
    def played(**more):
        settings = heal_settings(model="demo", rounds=1, **more)
        folder = jobs.create(settings, worker=this_process())
        with EventLog(folder.log) as log:
            start(log, settings)
            left = next(row.eta for row in index.rows() if row.run_id == folder.run_id)
            play_round(log, 1)
            log.append("finished", None, {"reason": "done"})
        return left

    assert played() is None
    assert played() >= 0.0
    assert played(data={"n_answers": 40}) is None, "of fewer answers nothing is known"
    assert played(seed=1) >= 0.0


SENTENCE = "was begun by an older version, whose way of healing is gone: start a new run"


def older(settings: HealSettings) -> dict[str, Any]:
    """The settings as an older version wrote them, with every name that is gone."""
    document = settings.model_dump(mode="json")
    for part, names in RETIRED.items():
        document[part] |= dict.fromkeys(names, 0.5)
    return document


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of an older version that was cancelled after its first round."""
    settings = heal_settings(model="demo", rounds=2, seed=5, train={"lam": 0.7})
    folder = LocalProcesses(tmp_path / "runs").create(settings)
    folder.write("config.json", json.dumps(older(settings)))
    with EventLog(folder.log) as log:
        start(log, settings)
        play_round(log, 1)
        log.append("cancelled", None, {"message": "enough"})
    return folder


def files(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_the_settings_of_an_older_run_are_read_without_what_is_gone() -> None:
    settings = heal_settings(model="demo", seed=5, train={"lam": 0.7})
    assert stored_settings(json.dumps(older(settings))) == (settings, True)
    assert stored_settings(settings.model_dump_json()) == (settings, False)
    for aggregate, gone in (("mean", False), ("rmse", True)):
        document = settings.model_dump(mode="json")
        document["train"]["aggregate"] = aggregate
        assert stored_settings(json.dumps(document)) == (settings, gone)
    for wrong in ('{"model": "demo", "future": 1}', '{"model": "demo", "data": 3}', "[]", "3", "{"):
        with pytest.raises(ValueError):
            stored_settings(wrong)


def test_it_is_shown_cloned_and_exported(folder: RunFolder, tmp_path: Path, run: Any) -> None:
    before = files(folder)
    index = RunIndex(
        LocalProcesses(folder.path.parent), Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0
    )
    index.watermark()
    assert [(row.run_id, row.status, row.round) for row in index.rows()] == [(folder.run_id, "cancelled", 1)]
    assert [(node.round, node.stage) for node in index.map([folder.run_id])] == [
        (0, "base"), (1, "steered"), (1, "healed"),
    ]  # fmt: skip
    assert index.round(folder.run_id, 1).facts["headline"]["word"] == "healed"
    assert index.settings(folder.run_id).train.lam == 0.7
    clone = LocalProcesses(folder.path.parent).create(index.settings(folder.run_id))
    assert clone.resumable() == index.settings(folder.run_id)
    places = ("--runs", str(folder.path.parent), "--db", str(tmp_path / "runs.duckdb"))
    code, _, err = run("export", "--run", folder.run_id, "--out", str(tmp_path / "out"), *places)
    assert code == 0, err
    assert (tmp_path / "out" / "config.json").read_bytes() == before["config.json"]
    assert files(folder) == before


def test_it_is_not_gone_on_with(folder: RunFolder, run: Any, tmp_path: Path) -> None:
    before, launcher = files(folder), LocalProcesses(folder.path.parent)
    for go_on in (
        lambda: launcher.resume(folder.run_id),
        lambda: worker.work(folder, threading.Event()),
    ):
        with pytest.raises(SettingsError, match=SENTENCE):
            go_on()
    places = ("--runs", str(folder.path.parent), "--db", str(tmp_path / "runs.duckdb"))
    code, _, err = run("heal", "--resume", folder.run_id, *places)
    assert code == 2
    assert SENTENCE in err
    assert files(folder) == before


def test_the_settings_of_the_shipped_example_can_be_cloned(tmp_path: Path) -> None:
    index = RunIndex(LocalProcesses(tmp_path / "runs"), Store(tmp_path / "runs.duckdb"), every_s=0.0)
    settings = index.settings(EXAMPLE_ID)
    (shown,) = index.rows()
    assert (settings.model, settings.rounds, settings.trait) == (shown.model, shown.rounds, shown.trait)
    assert len(index.map([EXAMPLE_ID])) == 2 + settings.rounds  # base, steered once, a healed one a round
    assert LocalProcesses(tmp_path / "runs").create(settings).resumable() == settings
