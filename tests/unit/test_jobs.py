"""Runs as processes: started, queued, paused, cancelled, resumed; found again by their folders; how they end;
which GPUs they get, on a machine that need not have any."""

import json
import os
import signal
import time
from dataclasses import replace

import psutil
import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder, Running, gpus, processes, this_process
from steer_heal.runs.jobs import folder as folder_module
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


def test_a_restarted_page_finds_the_run_and_starts_it_no_second_time(tmp_path, jobs):
    run_id = start(jobs, "hang")
    again = LocalProcesses(tmp_path / "runs", command=COMMAND)
    again.advance()
    assert again.poll(run_id) == jobs.poll(run_id)
    with pytest.raises(SettingsError, match="running"):
        again.resume(run_id)
    again.cancel(run_id)
    until(lambda: status(again, run_id) == "cancelled")
    assert sum(event.kind == "started" for event in jobs.events(run_id).events) == 1


def test_the_clock_moved_by_a_year_does_not_lose_a_worker(jobs, monkeypatch):
    """Linux counts a process's start from the machine's; both move when the clock is set."""
    folder = jobs.create(heal_settings(model="demo"), worker=this_process())
    boot, created, now = psutil.boot_time(), psutil.Process().create_time(), time.time
    for jump in (365 * 86_400.0, -365 * 86_400.0):
        monkeypatch.setattr(psutil, "boot_time", lambda jump=jump: boot + jump)
        monkeypatch.setattr(psutil.Process, "create_time", lambda _, jump=jump: created + jump)
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        assert status(jobs, folder.run_id) == "running"
        folder.ask("cancel")
        jobs.advance()
        assert status(jobs, folder.run_id) == "running"


def test_a_worker_that_was_quicker_than_its_starter_keeps_its_place(jobs):
    mine = this_process()
    folder = jobs.create(heal_settings(model="demo"), worker=mine)
    folder.claim_if_free(replace(mine, pid=1))
    assert folder.process() == mine
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "config.json",
        "events.jsonl",
        "process.json",
    ]


def test_a_reused_pid_is_not_taken_for_the_worker_nor_one_of_before_the_machine_started_again(jobs):
    mine = this_process()
    folder = jobs.create(heal_settings(model="demo"), worker=mine)
    assert status(jobs, folder.run_id) == "running"
    for other in (replace(mine, created=mine.created - 1000.0), replace(mine, boot="another start")):
        folder.claim(other)
        assert status(jobs, folder.run_id) == "interrupted"


def test_a_worker_of_another_host_is_known_by_its_heartbeat(jobs):
    folder = jobs.create(heal_settings(model="demo"), worker=processes.Running(1, 0.0, "elsewhere"))
    assert status(jobs, folder.run_id) == "interrupted"
    folder.beat()
    assert status(jobs, folder.run_id) == "running"
    old = time.time() - 2 * folder_module.SILENT_S
    os.utime(folder.path / "heartbeat", (old, old))
    assert status(jobs, folder.run_id) == "interrupted"


@pytest.mark.parametrize("bad", ["../../etc", "", "a/b", "UPPER", "no-such-run"])
def test_an_id_that_is_none_is_refused(jobs, bad):
    for act in (jobs.poll, jobs.cancel, jobs.resume):
        with pytest.raises(SettingsError, match="run"):
            act(bad)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--runs"):
        LocalProcesses(tmp_path / "file", command=COMMAND).start(heal_settings(model="demo"))


def test_a_config_of_another_version_is_a_sentence_and_the_log_unchanged(jobs):
    folder = jobs.create(heal_settings(model="demo"))
    folder.write("config.json", json.dumps({"model": "demo", "future": 1}))
    jobs.cancel(folder.run_id)
    before = events.read(folder.log)
    with pytest.raises(SettingsError, match="future"):
        jobs.resume(folder.run_id)
    assert events.read(folder.log) == before


def test_rubbish_in_the_runs_folder_is_passed_over(jobs, tmp_path):
    (tmp_path / "runs" / "Not a run").mkdir(parents=True)
    (tmp_path / "runs" / "empty-run").mkdir()
    (tmp_path / "runs" / "a-file").write_text("")
    assert jobs.runs() == []
    jobs.advance()
    with pytest.raises(SettingsError):
        RunFolder(tmp_path / "Not a run")


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
        (None, ROOM, 5, "for want of memory"),
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


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3, GPU-8ab"}, ["3", "GPU-8ab"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "3", "STEER_HEAL_GPUS": "2,3"}, ["2", "3"]),
    ],
)
def test_what_the_environment_allows_is_respected(environment, names, tmp_path):
    for device in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / device).mkdir()
    assert gpus.visible(environment, tmp_path) == names
    assert gpus.visible({}, tmp_path / "no driver") == []


@pytest.mark.parametrize(
    ("here", "taken", "at_once", "given"),
    [
        ([], [], 2, []),
        (["0", "1"], [], 1, ["0", "1"]),
        (["0", "1"], ["0"], 2, ["1"]),
        (["0", "1", "2", "3"], ["0", "1"], 2, ["2", "3"]),
        (["0"], ["0"], 2, ["0"]),
        (["0", "1"], ["0", "1", "1"], 4, ["0"]),
    ],
)
def test_runs_at_once_have_gpus_of_their_own_while_there_are_enough(here, taken, at_once, given):
    assert gpus.share(here, taken, at_once) == given


def test_a_worker_learns_its_own_and_the_next_one_all_of_them(tmp_path):
    told = gpus.environment(["0", "1"], ["1"])
    assert told["CUDA_VISIBLE_DEVICES"] == "1"
    assert gpus.visible(told, tmp_path) == ["0", "1"]
    assert gpus.environment([], []) == {}
    folder = RunFolder(tmp_path / "run-1")
    folder.path.mkdir()
    folder.claim(Running(1, 2.0, "here", "boot", "0,1"))
    assert folder.process() == Running(1, 2.0, "here", "boot", "0,1")
