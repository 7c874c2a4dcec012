"""Logs repeated and of other versions; disks full and read-only; many launchers on one folder."""

import json
import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.engine.run_index import RunIndex
from steer_heal.runs import events
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses, this_process
from steer_heal.runs.store import Store, StoreBusy
from tests.faults.conftest import fill
from tests.faults.tiny_runs import launcher, settings
from tests.jobs import until
from tests.runs import play_round, start, write_run
from tests.same import differing
from tests.unit.test_store import tables


def test_lines_repeated_garbled_newer_and_of_a_moved_clock(tmp_path: Path) -> None:
    """What can be taken in is, once; the rest is passed over; times that go back break nothing."""
    lines = write_run(tmp_path / "plain" / "events.jsonl", rounds=2).read_bytes().splitlines(keepends=True)
    chance, mixed = random.Random(1), []
    for line in lines:
        event = json.loads(line)
        event["time"] -= chance.choice([0, 3600, -3600, 10**9])
        newer = {**event, "kind": "unheard of", "data": {"more": [1, {"deep": True}]}, "extra": 3}
        rubbish = [b"{\n", b"\xff\xfe\n", b"[]\n", b"null\n", b"\n"]
        rubbish += [json.dumps({**event, "seq": seq}).encode() + b"\n" for seq in ("1", True, -1)]
        mixed += [*chance.sample(rubbish, 2), json.dumps(event).encode() + b"\n", line]
        mixed.append(json.dumps(newer).encode() + b"\n")
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"".join(mixed))
    found = events.read(path).events
    assert [event.seq for event in found] == list(range(len(lines)))
    assert [event.kind for event in found] == [json.loads(line)["kind"] for line in lines]
    stores = Store(tmp_path / "a.duckdb"), Store(tmp_path / "b.duckdb")
    stores[0].ingest("r10", events.read(path))
    stores[1].ingest("r10", events.read(tmp_path / "plain" / "events.jsonl"))
    for name, values in tables(stores[0]).items():
        assert len(values) == len(tables(stores[1])[name]), name
    row = stores[0].runs()[0]
    assert (row.status, row.round, row.progress) == ("finished", 2, 1.0)


@pytest.mark.faults
def test_disk_full_while_a_run_writes(small_disk: Path, tmp_path: Path) -> None:
    """The run waits for room, or fails and is resumed; either way it ends like one that had room."""
    expected = launcher(tmp_path / "runs")
    whole = expected.start(settings(2))
    until(lambda: expected.poll(whole).status == "finished")
    jobs, chance = launcher(small_disk / "runs"), random.Random(5)
    for _ in range(2):
        run_id = jobs.start(settings(2))
        until(lambda: len(jobs.events(run_id).events) > 3)  # noqa: B023
        time.sleep(chance.uniform(0.0, 1.0))
        filler = fill(small_disk)
        time.sleep(0.5)
        before = jobs.events(run_id).events
        state = jobs.poll(run_id)
        assert state.status != "running" or "disk is full" in state.message
        time.sleep(1.0)
        assert jobs.events(run_id).events[: len(before)] == before
        filler.unlink()
        until(lambda: jobs.poll(run_id).status not in ("running", "queued"))  # noqa: B023
        if jobs.poll(run_id).status != "finished":
            jobs.resume(run_id)
            until(lambda: jobs.poll(run_id).status not in ("running", "queued"))  # noqa: B023
        assert jobs.poll(run_id).status == "finished", jobs.poll(run_id).message
        assert differing(jobs.folder(run_id).path, expected.folder(whole).path) == []


def test_disk_full_while_the_store_takes_in(small_disk: Path, tmp_path: Path) -> None:
    """The page says that there is no room, keeps what it knew, and catches up."""
    jobs = LocalProcesses(tmp_path / "runs")
    folder = jobs.create(heal_settings(model="demo", rounds=32), worker=this_process())
    store = Store(small_disk / "runs.duckdb", patience=0.1)
    index = RunIndex(jobs, store, example=None, every_s=0.0)
    with EventLog(folder.log) as log:
        start(log, heal_settings(model="demo", rounds=32))
        play_round(log, 1)
        assert index.rows()[0].round == 1
        for round_ in range(2, 6):
            filler = fill(small_disk)
            play_round(log, round_)
            index.watermark()
            assert "no room" in index.message()
            assert index.rows()[0].round == round_ - 1
            filler.unlink()
            until(lambda: index.rows()[0].round == round_)  # noqa: B023
            assert index.message() == ""
    fresh = Store(tmp_path / "fresh.duckdb")
    fresh.ingest(folder.run_id, events.read(folder.log))
    assert tables(fresh) == tables(store)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@pytest.mark.faults
def test_folder_made_read_only(small_disk: Path) -> None:
    """Nothing starts, nothing is lost, the page says why, and all goes on once it can be written again."""
    jobs = launcher(small_disk / "runs")
    index = RunIndex(jobs, Store(small_disk / "runs.duckdb", patience=0.1), example=None, every_s=0.0)
    first = index.start(settings(1))
    until(lambda: index.rows()[0].status == "finished")
    rows, nodes = index.rows(), index.map([first])
    logged, worker = jobs.folder(first).log.read_bytes(), jobs.folder(first).process()
    until(lambda: not jobs.folder(first).alive(worker))
    remount(small_disk, "ro")
    again = RunIndex(launcher(small_disk / "runs"), Store(small_disk / "runs.duckdb"), example=None)
    for seen in (index, again):
        assert seen.runs() == rows
        assert seen.map([first]) == nodes
        assert "Read-only" in seen.message()
        for act in (lambda: seen.start(settings(1)), lambda: seen.resume(first), lambda: seen.cancel(first)):  # noqa: B023
            with pytest.raises(SettingsError):
                act()
    remount(small_disk, "rw")
    assert jobs.folder(first).log.read_bytes() == logged
    second = index.start(settings(1))
    until(lambda: index.rows()[0].status == "finished")
    assert (index.message(), len(index.rows())) == ("", 2)
    assert differing(jobs.folder(second).path, jobs.folder(first).path) == []


@pytest.mark.faults
def test_two_apps_on_one_folder_start_no_run_twice(tmp_path: Path) -> None:
    """Eight launchers, as eight apps, look at one queue at once, over and over."""
    apps = [launcher(tmp_path / "runs", at_once=2) for _ in range(8)]
    runs = [apps[0].create(settings(1)).run_id for _ in range(4)]
    over = threading.Event()
    wrong: list[Any] = []

    def look(app: LocalProcesses) -> None:
        while not over.is_set():
            try:
                app.advance()
            except (SettingsError, StoreBusy) as error:
                wrong.append(error)
            time.sleep(0.002)

    threads = [threading.Thread(target=look, args=(app,)) for app in apps]
    for thread in threads:
        thread.start()
    try:
        until(lambda: {apps[0].poll(run_id).status for run_id in runs} == {"finished"})
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    for run_id in runs:
        kinds = [event.kind for event in apps[0].events(run_id).events]
        assert (kinds.count("started"), kinds.count("resumed"), kinds.count("finished")) == (1, 0, 1)
        assert "already being worked on" not in apps[0].folder(run_id).worker_log.read_text()
