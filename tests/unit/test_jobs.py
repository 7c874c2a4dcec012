"""Runs as processes: started once, queued, paused, cancelled, resumed."""

import os
import signal
import time

import psutil
import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.runs.jobs import LocalProcesses
from tests.jobs import COMMAND, begun, last_kind, start, status, until


@pytest.mark.parametrize(("said", "gives_way_by"), [(None, 5), ("0", 0), ("19", 19)])
def test_a_run_has_its_own_session_and_gives_way_as_far_as_is_set(tmp_path, monkeypatch, said, gives_way_by):
    if said is not None:
        monkeypatch.setenv("STEER_HEAL_NICENESS", said)
    made = LocalProcesses(tmp_path / "runs", command=COMMAND)
    run_id = start(made, "hang")
    process = psutil.Process(made.poll(run_id).pid)
    assert os.getsid(process.pid) == process.pid
    assert process.nice() == max(gives_way_by, psutil.Process().nice())
    assert made.folder(run_id).worker_log.exists()
    process.kill()


@pytest.mark.parametrize("said", ["20", "-1", "much", ""])
def test_a_bad_niceness_is_a_sentence(tmp_path, monkeypatch, said):
    monkeypatch.setenv("STEER_HEAL_NICENESS", said)
    with pytest.raises(SettingsError, match="STEER_HEAL_NICENESS"):
        LocalProcesses(tmp_path / "runs")


def test_a_queued_run_can_be_cancelled_or_held_back_and_does_not_start(jobs):
    first, second, third = (
        jobs.start(heal_settings(model="demo", name=name)) for name in ("hang", "hang", "quick")
    )
    jobs.cancel(second)
    jobs.pause(third)
    assert status(jobs, second) == "cancelled"
    until(lambda: begun(jobs, first))
    jobs.cancel(first)
    until(lambda: status(jobs, first) == "cancelled")
    jobs.advance()
    assert status(jobs, third) == "paused"
    assert [jobs.folder(run_id).process() for run_id in (second, third)] == [None, None]
    jobs.resume(third)
    until(lambda: status(jobs, third) == "finished")


def test_a_paused_run_rests_where_it_is_and_goes_on(jobs):
    run_id = start(jobs, "slow")
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    pid, before = jobs.poll(run_id).pid, len(jobs.events(run_id).events)
    second = jobs.start(heal_settings(model="demo", name="quick"))
    time.sleep(0.1)
    assert len(jobs.events(run_id).events) == before
    assert status(jobs, second) == "queued"
    with pytest.raises(SettingsError, match="paused"):
        jobs.pause(run_id)
    jobs.resume(run_id)
    until(lambda: status(jobs, run_id) == "finished")
    kinds = [event.kind for event in jobs.events(run_id).events]
    assert (kinds.count("paused"), kinds.count("continued"), kinds.count("queued")) == (1, 1, 1)
    assert pid is not None
    jobs.advance()
    until(lambda: status(jobs, second) == "finished")


def test_a_paused_run_can_be_cancelled_or_killed(jobs):
    run_id = start(jobs, "slow")
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    jobs.cancel(run_id)
    until(lambda: status(jobs, run_id) == "cancelled")
    jobs.resume(run_id)
    until(lambda: status(jobs, run_id) == "running")
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    pid = jobs.poll(run_id).pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(jobs, run_id) == "interrupted")
    jobs.advance()
    assert last_kind(jobs, run_id) == "interrupted"


def test_several_may_run_at_once_and_no_more(tmp_path):
    two = LocalProcesses(tmp_path / "runs", at_once=2, command=COMMAND)
    runs = [two.start(heal_settings(model="demo", name="hang")) for _ in range(3)]
    assert sorted(status(two, run_id) for run_id in runs) == ["queued", "running", "running"]
    for run_id in reversed(runs):
        until(lambda run_id=run_id: status(two, run_id) == "queued" or begun(two, run_id))
        two.cancel(run_id)
    until(lambda: {status(two, run_id) for run_id in runs} == {"cancelled"})
    with pytest.raises(SettingsError, match="at once"):
        LocalProcesses(tmp_path / "runs", at_once=1000)


def test_the_queue_has_an_end(jobs, monkeypatch):
    monkeypatch.setattr("steer_heal.runs.jobs.local.MAX_QUEUED_RUNS", 2)
    held = [jobs.create(heal_settings(model="demo")) for _ in range(2)]
    with pytest.raises(SettingsError, match="2 runs are waiting"):
        jobs.start(heal_settings(model="demo"))
    assert len(jobs.runs()) == len(held)


def test_only_what_runs_can_be_cancelled_and_only_what_ended_early_resumed(jobs):
    run_id = jobs.start(heal_settings(model="demo", name="quick"))
    until(lambda: status(jobs, run_id) == "finished")
    with pytest.raises(SettingsError, match="nothing to cancel"):
        jobs.cancel(run_id)
    with pytest.raises(SettingsError, match="finished"):
        jobs.resume(run_id)
