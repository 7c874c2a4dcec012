"""SIGKILL at random moments, of the worker, of who takes events into the store, and of both at once."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steer_heal.engine.run_index import RunIndex
from steer_heal.runs import events
from steer_heal.runs.store import Store
from tests.faults.conftest import MANY
from tests.faults.tiny_runs import kill, launcher, settings
from tests.jobs import last_kind, until
from tests.same import differing
from tests.unit.test_store import tables

pytestmark = pytest.mark.faults

KILLS_A_RUN = 10
ROUNDS = 3


def begun(index: RunIndex, run_id: str) -> int:
    """How many workers have begun to work on it, one after another."""
    return sum(event.kind in ("started", "resumed") for event in index.launcher.events(run_id).events)


def told(index: RunIndex, run_id: str) -> bool:
    """Whether the kill has become an event."""
    index.watermark()
    return last_kind(index.launcher, run_id) == "interrupted"


def test_worker_killed_at_random_moments_over_rounds(tmp_path: Path) -> None:
    """Killed, resumed, killed again; what comes out in the end equals a run that nobody cut, bit for bit."""
    alone = launcher(tmp_path / "whole")
    whole = alone.start(settings(ROUNDS))
    until(lambda: alone.poll(whole).status == "finished")
    log, expected = alone.events(whole).events, alone.folder(whole).path
    seconds = log[-1].time - next(event.time for event in log if event.kind == "started")
    chance, hit = random.Random(MANY), 0
    for number in itertools.count():
        if hit >= MANY:
            break
        jobs = launcher(tmp_path / f"runs-{number}")
        index = RunIndex(jobs, Store(tmp_path / f"{number}.duckdb"), example=None, every_s=0.0)
        run_id = index.start(settings(ROUNDS))
        for times in range(min(KILLS_A_RUN, MANY - hit)):
            until(lambda: begun(index, run_id) > times)  # noqa: B023
            time.sleep(chance.uniform(0.0, 0.5 * seconds))
            done = jobs.folder(run_id).last_round()
            if not kill(jobs, run_id):
                break
            hit += 1
            until(lambda: told(index, run_id))  # noqa: B023
            row = index.rows()[0]
            assert (row.status, row.round >= done) == ("interrupted", True)
            assert "SIGKILL" in row.message
            index.resume(run_id)
        until(lambda: jobs.poll(run_id).status not in ("running", "queued"))  # noqa: B023
        assert jobs.poll(run_id).status == "finished", jobs.folder(run_id).last_line()
        assert differing(jobs.folder(run_id).path, expected) == []
        rebuilt = Store(tmp_path / f"{number}-again.duckdb")
        rebuilt.ingest(run_id, jobs.events(run_id))
        assert index.rows()[0].round == ROUNDS
        known, again = tables(index.store), tables(rebuilt)
        assert [name for name in known if known[name] != again[name]] == [], (known["runs"], again["runs"])


def process(what: str, *arguments: Path) -> subprocess.Popen[str]:
    """One of `tests.faults.processes` that has said that it is at work."""
    command = [sys.executable, "-m", "tests.faults.processes", what, *map(str, arguments)]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert made.stdout.readline() == "ready\n"
    return made


def end(*processes: subprocess.Popen[str]) -> None:
    for one in processes:
        os.kill(one.pid, signal.SIGKILL)
    for one in processes:
        one.wait()
        one.stdout.close()


def taken_in(runs: Path, db: Path, tmp_path: Path) -> None:
    """Fails unless the store, once it has caught up, equals one made afresh, and no line is missing."""
    store, fresh = Store(db), Store(tmp_path / "fresh.duckdb")
    marks = store.marks()
    for folder in runs.iterdir():
        log = folder / "events.jsonl"
        whole = events.read(log)
        assert [event.seq for event in whole.events] == list(range(len(whole.events)))
        store.ingest(folder.name, events.read(log, marks.get(folder.name, 0)))
        fresh.ingest(folder.name, whole)
    assert tables(store) == tables(fresh)
    assert len(store.runs()) == len(list(runs.iterdir()))


def test_three_apps_take_one_run_into_one_store_at_once(tmp_path: Path) -> None:
    """Each waits for the others; nothing is taken in twice, nothing is left out, nobody fails."""
    runs, db = tmp_path / "runs", tmp_path / "runs.duckdb"
    writer = process("write", runs)
    apps = [process("ingest", runs, db) for _ in range(3)]
    try:
        time.sleep(4.0)
        assert [app.poll() for app in apps] == [None] * 3
    finally:
        end(writer, *apps)
    taken_in(runs, db, tmp_path)


def test_worker_and_app_killed_at_once(tmp_path: Path) -> None:
    runs, db, chance = tmp_path / "runs", tmp_path / "runs.duckdb", random.Random(MANY)
    for _ in range(MANY):
        pair = process("write", runs), process("ingest", runs, db)
        time.sleep(chance.uniform(0.0, 0.3))
        end(*pair)
    taken_in(runs, db, tmp_path)
