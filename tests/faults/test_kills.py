"""SIGKILL at random moments, of the worker, of who takes events into the store, and of both at once."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from steer_heal.engine.run_index import RunIndex
from steer_heal.runs import events
from steer_heal.runs.store import Store
from tests.faults.conftest import COUNTS, FAULTS_ONLY, Tally
from tests.faults.forked import ForkedProcesses, kill, outcome, settings
from tests.jobs import until
from tests.unit.test_store import tables

KILLS_A_RUN = 10
ROUNDS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, Any], float]:
    """What a run that nobody cut comes to, and how many seconds it takes."""
    jobs = ForkedProcesses(tmp_path_factory.mktemp("whole") / "runs")
    began = time.monotonic()
    run_id = jobs.start(settings(ROUNDS))
    until(lambda: jobs.poll(run_id).status == "finished")
    return outcome(jobs.folder(run_id).path), time.monotonic() - began


@pytest.mark.faults
def test_the_comparison_sees_a_difference(whole: tuple[dict[Any, Any], float], tmp_path: Path) -> None:
    jobs = ForkedProcesses(tmp_path / "runs")
    run_id = jobs.start(settings(ROUNDS).model_copy(update={"seed": 8}))
    until(lambda: jobs.poll(run_id).status == "finished")
    other = outcome(jobs.folder(run_id).path)
    assert other["events"] != whole[0]["events"]
    assert other["files"].keys() == whole[0]["files"].keys()
    assert other["files"] != whole[0]["files"]


def told(index: RunIndex, jobs: ForkedProcesses, run_id: str) -> bool:
    """Whether the kill has become an event."""
    index.watermark()
    last = jobs.folder(run_id).last_event()
    return last is not None and last.kind == "interrupted"


@pytest.mark.parametrize("kills", COUNTS)
def test_worker_killed_at_random_moments_over_rounds(
    whole: tuple[dict[Any, Any], float], tmp_path: Path, tally: Tally, kills: int
) -> None:
    """Killed, resumed, killed again; what comes out in the end equals a run that nobody cut, bit for bit."""
    expected, seconds = whole
    chance = random.Random(kills)
    for number in itertools.count():
        if tally.injected >= kills:
            break
        jobs = ForkedProcesses(tmp_path / f"runs-{number}")
        index = RunIndex(jobs, Store(tmp_path / f"{number}.duckdb"), example=None, every_s=0.0)
        run_id, hits = index.start(settings(ROUNDS)), 0
        for _ in range(min(KILLS_A_RUN, kills - tally.injected)):
            time.sleep(chance.uniform(0.0, 0.5 * seconds))
            done = jobs.folder(run_id).last_round()
            if not kill(jobs, run_id):
                break
            hits += 1
            until(lambda: told(index, jobs, run_id))  # noqa: B023
            row = index.rows()[0]
            assert (row.status, row.round >= done) == ("interrupted", True)
            assert "SIGKILL" in row.message
            index.resume(run_id)
        until(lambda: jobs.poll(run_id).status not in ("running", "queued"))  # noqa: B023
        tally.injected += hits
        assert jobs.poll(run_id).status == "finished", jobs.folder(run_id).last_line()
        assert outcome(jobs.folder(run_id).path) == expected
        rebuilt = Store(tmp_path / f"{number}-again.duckdb")
        rebuilt.ingest(run_id, jobs.events(run_id))
        assert index.rows()[0].round == ROUNDS
        known, again = tables(index.store), tables(rebuilt)
        assert [name for name in known if known[name] != again[name]] == [], (known["runs"], again["runs"])
        tally.survived += hits


def process(module: str, *arguments: Path) -> subprocess.Popen[str]:
    """A helper that has said that it is at work."""
    made = subprocess.Popen(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
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


@pytest.mark.faults
def test_three_apps_take_one_run_into_one_store_at_once(tmp_path: Path, tally: Tally) -> None:
    """Each waits for the others; nothing is taken in twice, nothing is left out, nobody fails."""
    runs, db = tmp_path / "runs", tmp_path / "runs.duckdb"
    writer = process("writer", runs)
    apps = [process("ingester", runs, db) for _ in range(3)]
    try:
        tally.injected = len(apps)
        time.sleep(4.0)
        assert [app.poll() for app in apps] == [None] * 3
    finally:
        end(writer, *apps)
    taken_in(runs, db, tmp_path)
    tally.survived = tally.injected


@pytest.mark.parametrize("kills", FAULTS_ONLY)
def test_app_killed_at_random_moments_of_ingest(tmp_path: Path, tally: Tally, kills: int) -> None:
    runs, db, chance = tmp_path / "runs", tmp_path / "runs.duckdb", random.Random(kills)
    writer = process("writer", runs)
    try:
        for _ in range(kills):
            ingester = process("ingester", runs, db)
            time.sleep(chance.uniform(0.0, 0.3))
            end(ingester)
            tally.injected += 1
    finally:
        end(writer)
    taken_in(runs, db, tmp_path)
    tally.survived = tally.injected


@pytest.mark.parametrize("kills", FAULTS_ONLY)
def test_worker_and_app_killed_at_once(tmp_path: Path, tally: Tally, kills: int) -> None:
    runs, db, chance = tmp_path / "runs", tmp_path / "runs.duckdb", random.Random(kills)
    for _ in range(kills):
        pair = process("writer", runs), process("ingester", runs, db)
        time.sleep(chance.uniform(0.0, 0.3))
        end(*pair)
        tally.injected += 1
    taken_in(runs, db, tmp_path)
    tally.survived = tally.injected
