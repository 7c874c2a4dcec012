"""Runs as processes: started once, queued, cancelled, killed, found again, resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from steer_heal import events
from steer_heal.config import SettingsError, heal_settings
from steer_heal.jobs import LocalProcesses, RunFolder, processes, this_process
from steer_heal.jobs import folder as folder_module

COMMAND = (sys.executable, "-m", "tests.fake_worker")


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalProcesses]:
    launcher = LocalProcesses(tmp_path / "runs", command=COMMAND)
    yield launcher
    for run_id in launcher.runs():
        process = launcher.folder(run_id).process()
        if process is not None and process.pid != os.getpid() and launcher.folder(run_id).alive(process):
            os.kill(process.pid, signal.SIGKILL)


def status(jobs: LocalProcesses, run_id: str) -> str:
    return jobs.poll(run_id).status


def begun(jobs: LocalProcesses, run_id: str) -> bool:
    return any(event.kind == "round" for event in jobs.events(run_id).events)


def test_a_run_is_a_process_of_its_own_that_ends_finished(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="quick", seed=3))
    until(lambda: status(jobs, run_id) == "finished")
    kinds = [event.kind for event in jobs.events(run_id).events]
    assert kinds[:2] == ["queued", "started"]
    assert kinds[-1] == "finished"
    assert jobs.folder(run_id).settings().seed == 3
    assert jobs.runs() == [run_id]


def test_a_run_has_its_own_session_and_gives_way(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="hang"))
    until(lambda: begun(jobs, run_id))
    pid = jobs.poll(run_id).pid
    assert pid is not None
    assert os.getsid(pid) == pid
    assert psutil.Process(pid).nice() == max(5, psutil.Process().nice())
    assert (jobs.folder(run_id).worker_log).exists()


@pytest.mark.parametrize(("said", "gives_way_by"), [("0", 0), ("19", 19)])
def test_how_far_a_run_gives_way_is_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, gives_way_by: int
) -> None:
    monkeypatch.setenv("STEER_HEAL_NICENESS", said)
    made = LocalProcesses(tmp_path / "runs", command=COMMAND)
    run_id = made.start(heal_settings(name="hang"))
    until(lambda: begun(made, run_id))
    pid = made.poll(run_id).pid
    assert psutil.Process(pid).nice() == max(gives_way_by, psutil.Process().nice())
    psutil.Process(pid).kill()


@pytest.mark.parametrize("said", ["20", "-1", "much", ""])
def test_a_bad_niceness_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("STEER_HEAL_NICENESS", said)
    with pytest.raises(SettingsError, match="STEER_HEAL_NICENESS"):
        LocalProcesses(tmp_path / "runs")


def test_the_second_run_waits_and_starts_when_the_first_has_ended(jobs: LocalProcesses) -> None:
    first, second = (jobs.start(heal_settings(name=name)) for name in ("hang", "quick"))
    until(lambda: begun(jobs, first))
    jobs.advance()
    assert [status(jobs, first), status(jobs, second)] == ["running", "queued"]
    jobs.cancel(first)
    until(lambda: status(jobs, first) == "cancelled")
    jobs.advance()
    until(lambda: status(jobs, second) == "finished")


def test_a_queued_run_can_be_cancelled_and_never_starts(jobs: LocalProcesses) -> None:
    first, second = (jobs.start(heal_settings(name="hang")) for _ in range(2))
    jobs.cancel(second)
    assert status(jobs, second) == "cancelled"
    until(lambda: begun(jobs, first))
    jobs.cancel(first)
    until(lambda: status(jobs, first) == "cancelled")
    jobs.advance()
    assert jobs.folder(second).process() is None


def test_a_run_that_will_not_stop_is_killed_after_the_grace_time(
    tmp_path: Path, jobs: LocalProcesses
) -> None:
    short = LocalProcesses(tmp_path / "runs", command=COMMAND, grace_s=0.3)
    run_id = short.start(heal_settings(name="deaf"))
    until(lambda: begun(short, run_id))
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


def test_a_killed_worker_is_interrupted_and_goes_on_after_its_last_round(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="hang", rounds=2))
    until(lambda: begun(jobs, run_id))
    pid = jobs.poll(run_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(jobs, run_id) == "interrupted")
    assert "SIGKILL" in jobs.poll(run_id).message
    folder = jobs.folder(run_id)
    folder.write("config.json", heal_settings(name="quick", rounds=2).model_dump_json())
    jobs.resume(run_id)
    until(lambda: status(jobs, run_id) == "finished")
    log = jobs.events(run_id).events
    resumed = next(event for event in log if event.kind == "resumed")
    assert resumed.data == {"round": 1}
    assert [event.round for event in log if event.kind == "round"] == [1, 2]
    assert [event.seq for event in log] == list(range(len(log)))


def test_a_worker_that_ends_without_a_word_is_interrupted_with_the_end_of_its_log(
    jobs: LocalProcesses,
) -> None:
    run_id = jobs.start(heal_settings(name="crash"))
    until(lambda: status(jobs, run_id) == "interrupted")
    assert "the last line of its log" in jobs.poll(run_id).message


def test_a_restarted_page_finds_the_run_and_starts_it_no_second_time(
    tmp_path: Path, jobs: LocalProcesses
) -> None:
    run_id = jobs.start(heal_settings(name="hang"))
    until(lambda: begun(jobs, run_id))
    again = LocalProcesses(tmp_path / "runs", command=COMMAND)
    again.advance()
    assert again.poll(run_id) == jobs.poll(run_id)
    with pytest.raises(SettingsError, match="running"):
        again.resume(run_id)
    again.cancel(run_id)
    until(lambda: status(again, run_id) == "cancelled")
    assert sum(event.kind == "started" for event in jobs.events(run_id).events) == 1


def last_kind(jobs: LocalProcesses, run_id: str) -> str:
    newest = jobs.folder(run_id).last_event()
    return "" if newest is None else newest.kind


def test_a_kill_becomes_an_event_a_person_can_read_written_once(tmp_path: Path, jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="hang"))
    until(lambda: begun(jobs, run_id))
    pid = jobs.poll(run_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(jobs, run_id) == "interrupted")
    for launcher in (jobs, LocalProcesses(tmp_path / "runs", command=COMMAND), jobs):
        launcher.advance()
    said = [event for event in jobs.events(run_id).events if event.kind == "interrupted"]
    assert len(said) == 1
    assert (said[0].data["signal"], said[0].data["code"], said[0].data["pid"]) == ("SIGKILL", -9, pid)
    assert "killed by SIGKILL" in said[0].data["message"]
    assert jobs.poll(run_id).message == said[0].data["message"]


def test_an_exit_without_a_word_is_told_with_its_code(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="crash"))
    until(lambda: status(jobs, run_id) == "interrupted")
    jobs.advance()
    newest = jobs.folder(run_id).last_event()
    assert newest is not None
    assert (newest.kind, newest.data["code"], newest.data["signal"]) == ("interrupted", 3, None)
    assert "exit code 3: the last line of its log" in newest.data["message"]


@pytest.mark.parametrize(
    ("code", "last", "kills", "says"),
    [
        (
            -9,
            {"held": 3_100_000_000, "left": 10**8, "total": 10**10, "kills": 0},
            0,
            "for want of memory: it held 3.1 GB",
        ),
        (-9, {"held": 10**9, "left": 5 * 10**9, "total": 10**10, "kills": 4}, 5, "for want of memory"),
        (None, {"held": 10**9, "left": 5 * 10**9, "total": 10**10, "kills": 4}, 5, "for want of memory"),
        (-9, {"held": 10**9, "left": 5 * 10**9, "total": 10**10, "kills": 4}, 4, "by a person or a program"),
        (-11, {}, 0, "killed by SIGSEGV"),
        (3, {}, 0, "exit code 3: the last words"),
        (None, {}, 0, "is gone: the last words"),
    ],
)
def test_how_a_worker_ended_in_words(
    monkeypatch: pytest.MonkeyPatch, code: int | None, last: dict, kills: int, says: str
) -> None:
    monkeypatch.setattr(processes, "out_of_memory_kills", lambda: kills)
    told = processes.account(code, last, "the last words")
    assert says in told["message"]
    assert told["out_of_memory"] == ("want of memory" in says)


def test_a_paused_run_rests_where_it_is_and_goes_on(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="slow"))
    until(lambda: begun(jobs, run_id))
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    pid, before = jobs.poll(run_id).pid, len(jobs.events(run_id).events)
    second = jobs.start(heal_settings(name="quick"))
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


def test_a_paused_run_can_be_cancelled_or_killed(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="slow"))
    until(lambda: begun(jobs, run_id))
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    jobs.cancel(run_id)
    until(lambda: status(jobs, run_id) == "cancelled")
    jobs.resume(run_id)
    until(lambda: status(jobs, run_id) == "running")
    jobs.pause(run_id)
    until(lambda: status(jobs, run_id) == "paused")
    pid = jobs.poll(run_id).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: status(jobs, run_id) == "interrupted")
    jobs.advance()
    assert last_kind(jobs, run_id) == "interrupted"


def test_a_queued_run_can_be_held_back(jobs: LocalProcesses) -> None:
    first, second = jobs.start(heal_settings(name="hang")), jobs.start(heal_settings(name="quick"))
    jobs.pause(second)
    until(lambda: begun(jobs, first))
    jobs.cancel(first)
    until(lambda: status(jobs, first) == "cancelled")
    jobs.advance()
    assert status(jobs, second) == "paused"
    assert jobs.folder(second).process() is None
    jobs.resume(second)
    until(lambda: status(jobs, second) == "finished")


def test_the_clock_moved_by_a_year_does_not_lose_a_worker(
    jobs: LocalProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux counts a process's start from the machine's; both move when the clock is set."""
    folder = jobs.create(heal_settings(), worker=this_process())
    boot, created, now = psutil.boot_time(), psutil.Process().create_time(), time.time
    for jump in (365 * 86_400.0, -365 * 86_400.0):
        monkeypatch.setattr(psutil, "boot_time", lambda jump=jump: boot + jump)
        monkeypatch.setattr(psutil.Process, "create_time", lambda _, jump=jump: created + jump)
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        assert status(jobs, folder.run_id) == "running"
        folder.ask("cancel")
        jobs.advance()
        assert status(jobs, folder.run_id) == "running"


def test_a_worker_of_before_the_machine_started_again_is_gone(jobs: LocalProcesses) -> None:
    mine = this_process()
    folder = jobs.create(heal_settings(), worker=mine)
    folder.claim(replace(mine, boot="another start"))
    assert status(jobs, folder.run_id) == "interrupted"


def test_a_worker_that_was_quicker_than_its_starter_keeps_its_place(jobs: LocalProcesses) -> None:
    mine = this_process()
    folder = jobs.create(heal_settings(), worker=mine)
    folder.claim_if_free(replace(mine, pid=1))
    assert folder.process() == mine
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "config.json",
        "events.jsonl",
        "process.json",
    ]


def test_several_may_run_at_once_and_no_more(tmp_path: Path) -> None:
    two = LocalProcesses(tmp_path / "runs", at_once=2, command=COMMAND)
    runs = [two.start(heal_settings(name="hang")) for _ in range(3)]
    assert sorted(status(two, run_id) for run_id in runs) == ["queued", "running", "running"]
    for run_id in reversed(runs):
        until(lambda run_id=run_id: status(two, run_id) == "queued" or begun(two, run_id))
        two.cancel(run_id)
    until(lambda: {status(two, run_id) for run_id in runs} == {"cancelled"})
    with pytest.raises(SettingsError, match="at once"):
        LocalProcesses(tmp_path / "runs", at_once=1000)


def test_more_at_once_than_there_may_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="choose 1 to 16"):
        LocalProcesses(tmp_path / "runs", at_once=17)


def test_the_queue_has_an_end(jobs: LocalProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steer_heal.jobs.local.MAX_QUEUED_RUNS", 2)
    held = [jobs.create(heal_settings()) for _ in range(2)]
    with pytest.raises(SettingsError, match="2 runs are waiting"):
        jobs.start(heal_settings())
    assert len(jobs.runs()) == len(held)


def test_a_reused_pid_is_not_taken_for_the_worker(jobs: LocalProcesses) -> None:
    mine = this_process()
    folder = jobs.create(heal_settings(), worker=mine)
    assert status(jobs, folder.run_id) == "running"
    folder.claim(processes.Running(mine.pid, mine.created - 1000.0, mine.host))
    assert status(jobs, folder.run_id) == "interrupted"


def test_a_worker_of_another_host_is_known_by_its_heartbeat(jobs: LocalProcesses) -> None:
    folder = jobs.create(heal_settings(), worker=processes.Running(1, 0.0, "elsewhere"))
    assert status(jobs, folder.run_id) == "interrupted"
    folder.beat()
    assert status(jobs, folder.run_id) == "running"
    old = time.time() - 2 * folder_module.SILENT_S
    os.utime(folder.path / "heartbeat", (old, old))
    assert status(jobs, folder.run_id) == "interrupted"


def test_only_what_runs_can_be_cancelled_and_only_what_ended_early_resumed(jobs: LocalProcesses) -> None:
    run_id = jobs.start(heal_settings(name="quick"))
    until(lambda: status(jobs, run_id) == "finished")
    with pytest.raises(SettingsError, match="nothing to cancel"):
        jobs.cancel(run_id)
    with pytest.raises(SettingsError, match="finished"):
        jobs.resume(run_id)


@pytest.mark.parametrize("bad", ["../../etc", "", "a/b", "UPPER", "no-such-run"])
def test_an_id_that_is_none_is_refused(jobs: LocalProcesses, bad: str) -> None:
    for act in (jobs.poll, jobs.cancel, jobs.resume):
        with pytest.raises(SettingsError, match="run"):
            act(bad)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--runs"):
        LocalProcesses(tmp_path / "file", command=COMMAND).start(heal_settings())


def test_a_config_of_another_version_is_a_sentence_and_the_log_unchanged(jobs: LocalProcesses) -> None:
    folder = jobs.create(heal_settings())
    folder.write("config.json", json.dumps({"future": 1}))
    jobs.cancel(folder.run_id)
    before = events.read(folder.log)
    with pytest.raises(SettingsError, match="future"):
        jobs.resume(folder.run_id)
    assert events.read(folder.log) == before


def test_rubbish_in_the_runs_folder_is_passed_over(jobs: LocalProcesses, tmp_path: Path) -> None:
    (tmp_path / "runs" / "Not a run").mkdir(parents=True)
    (tmp_path / "runs" / "empty-run").mkdir()
    (tmp_path / "runs" / "a-file").write_text("")
    assert jobs.runs() == []
    jobs.advance()
    with pytest.raises(SettingsError):
        RunFolder(tmp_path / "Not a run")
