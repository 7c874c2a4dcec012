"""How a run's process ends: killed, crashed, out of memory; and what is told of it."""

import os
import signal
import time

import pytest

from steer_heal.config import heal_settings
from steer_heal.runs.jobs import LocalProcesses, processes
from tests.jobs import COMMAND, start, status, until


def test_a_run_that_will_not_stop_is_killed_after_the_grace_time(tmp_path, jobs):
    short = LocalProcesses(tmp_path / "runs", command=COMMAND, grace_s=0.3)
    run_id = start(short, "deaf")
    jobs.cancel(run_id)
    time.sleep(0.1)
    jobs.advance()
    assert status(jobs, run_id) == "running"

    def ended() -> bool:
        short.advance()
        last = short.folder(run_id).last_event()
        return last is not None and last.kind == "cancelled"

    until(ended)
    assert status(jobs, run_id) == "cancelled"


def test_a_kill_is_an_event_written_once_and_the_run_goes_on_after_its_last_round(tmp_path, jobs):
    run_id = start(jobs, "hang", rounds=2)
    pid = jobs.poll(run_id).pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(jobs, run_id) == "interrupted")
    for launcher in (jobs, LocalProcesses(tmp_path / "runs", command=COMMAND), jobs):
        launcher.advance()
    said = [event for event in jobs.events(run_id).events if event.kind == "interrupted"]
    assert len(said) == 1
    assert (said[0].data["signal"], said[0].data["code"], said[0].data["pid"]) == ("SIGKILL", -9, pid)
    assert "killed by SIGKILL" in said[0].data["message"]
    assert jobs.poll(run_id).message == said[0].data["message"]
    folder = jobs.folder(run_id)
    folder.write("config.json", heal_settings(model="demo", name="quick", rounds=2).model_dump_json())
    jobs.resume(run_id)
    until(lambda: status(jobs, run_id) == "finished")
    log = jobs.events(run_id).events
    resumed = next(event for event in log if event.kind == "resumed")
    assert resumed.data == {"round": 1}
    assert [event.round for event in log if event.kind == "round"] == [1, 2]
    assert [event.seq for event in log] == list(range(len(log)))


def test_an_exit_without_a_word_is_told_with_its_code(jobs):
    run_id = jobs.start(heal_settings(model="demo", name="crash"))
    until(lambda: status(jobs, run_id) == "interrupted")
    jobs.advance()
    newest = jobs.folder(run_id).last_event()
    assert (newest.kind, newest.data["code"], newest.data["signal"]) == ("interrupted", 3, None)
    assert "exit code 3: the last line of its log" in newest.data["message"]


NONE_LEFT = {"held": 3_100_000_000, "left": 10**8, "total": 10**10, "kills": 0}
ROOM = {"held": 10**9, "left": 5 * 10**9, "total": 10**10, "kills": 4}


@pytest.mark.parametrize(
    ("code", "last", "kills", "says"),
    [
        (-9, NONE_LEFT, 0, "for want of memory: it held 3.1 GB"),
        (-9, ROOM, 5, "for want of memory"),
        (-9, ROOM, 4, "by a person or a program"),
        (-11, {}, 0, "killed by SIGSEGV"),
        (3, {}, 0, "exit code 3: the last words"),
        (None, {}, 0, "is gone: the last words"),
    ],
)
def test_how_a_worker_ended_in_words(monkeypatch, code, last, kills, says):
    monkeypatch.setattr(processes, "out_of_memory_kills", lambda: kills)
    told = processes.account(code, last, "the last words")
    assert says in told["message"]
    assert told["out_of_memory"] == ("want of memory" in says)
