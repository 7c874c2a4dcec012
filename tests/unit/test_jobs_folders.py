"""Runs found again by their folders: whose process it is, and what lies there that is none."""

import json
import os
import time
from dataclasses import replace

import psutil
import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder, processes, this_process
from steer_heal.runs.jobs import folder as folder_module
from tests.jobs import COMMAND, start, status, until


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


def test_a_reused_pid_is_not_taken_for_the_worker_nor_one_of_before_the_machine_started_again(
    jobs,
):
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
