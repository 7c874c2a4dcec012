"""The worker: every way a run can end is its last event and an exit code, and nothing is written twice."""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from steer_heal.config import SettingsError, heal_settings
from steer_heal.runs import events, worker
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses, RunFolder

Emission = tuple[str, int | None, dict[str, Any]]


@pytest.fixture
def folder(tmp_path):
    return LocalProcesses(tmp_path / "runs").create(heal_settings(model="demo", rounds=2, seed=5))


@pytest.fixture
def play(monkeypatch):
    """Puts a function in the loop's place; gives the keyword arguments it was called with."""
    asked: list[dict[str, Any]] = []

    def put(script: Callable[..., Iterator[Emission]]) -> list[dict[str, Any]]:
        def run(_lm: Any, settings: Any, _folder: Path, **rest: Any) -> Iterator[Emission]:
            asked.append({"settings": settings, **rest})
            yield from script(rest["stop"])

        monkeypatch.setattr("steer_heal.runs.worker.models.load", lambda name: None)
        monkeypatch.setattr("steer_heal.runs.worker.heal.run", run)
        return asked

    return put


def kinds(folder: RunFolder) -> list[str]:
    return [event.kind for event in events.read(folder.log).events]


def two_rounds(_stop: Any) -> Iterator[Emission]:
    yield "profile", 0, {"stage": "base"}
    yield "answers", 0, {"prompts": [], "texts": []}
    yield "round", 1, {"retention": float("nan")}
    yield "round", 2, {"retention": 1.0}
    yield "finished", None, {"reason": "2 rounds done"}


def test_a_finished_run_exits_0_and_every_event_is_in_the_log(folder, play):
    asked = play(two_rounds)
    assert worker.main([str(folder.path)]) == 0
    assert kinds(folder) == ["queued", "started", "profile", "answers", "round", "round", "finished"]
    assert asked[0]["settings"].seed == 5
    assert (asked[0]["start_round"], asked[0]["earlier"]) == (0, ())
    started = events.read(folder.log).events[1].data
    assert started["pid"] == os.getpid()
    assert started["settings"]["seed"] == 5
    assert (folder.path / "heartbeat").exists()


def test_what_breaks_a_run_is_its_last_event(folder, play, capsys):
    def breaks(_stop: Any) -> Iterator[Emission]:
        yield "round", 1, {}
        raise MemoryError("too big\nsecond line")

    play(breaks)
    assert worker.main([str(folder.path)]) == 1
    last = folder.last_event()
    assert last.kind == "failed"
    assert last.data["message"].startswith("MemoryError: too big (")
    assert "Lower train.batch_size" in last.data["message"]
    assert "Traceback" in capsys.readouterr().err


def test_settings_that_do_not_work_fail_in_one_sentence(folder, monkeypatch):
    def no_model(_name: str) -> None:
        raise SettingsError("There is no such model.")

    monkeypatch.setattr("steer_heal.runs.worker.models.load", no_model)
    assert worker.main([str(folder.path)]) == 1
    last = folder.last_event()
    assert last.data == {"message": "There is no such model."}


@pytest.mark.parametrize("n", [1, 3], ids=["within base", "after a round"])
def test_resumed_after_the_last_finished_round_with_base_where_it_was_measured_whole(folder, play, n):
    def cut(_stop):
        yield from list(two_rounds(None))[:n]
        yield "cancelled", None, {}

    play(cut)
    assert worker.main([str(folder.path)]) == 3
    asked = play(two_rounds)
    assert worker.main([str(folder.path)]) == 0
    done = int(n == 3)
    assert asked[-1]["start_round"] == done
    earlier = [event.kind for event in asked[-1]["earlier"]]
    assert ("answers" in earlier) == bool(earlier) == (n == 3)
    resumed = next(event for event in events.read(folder.log).events if event.kind == "resumed")
    assert resumed.data["round"] == done
    assert kinds(folder).count("started") == 1


@pytest.mark.parametrize("how", ["signal", "file"])
def test_it_stops_when_told_by_signal_or_file(folder, play, how):
    def long(stop: Callable[[], bool]) -> Iterator[Emission]:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM) if how == "signal" else folder.ask("cancel")
        while not stop():
            pass
        yield "cancelled", None, {"message": "stopped"}

    play(long)
    before = signal.getsignal(signal.SIGTERM)
    assert worker.main([str(folder.path)]) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_pause_holds_every_step_and_leaves_two_events(folder, play):
    seen: list[str] = []

    def long(stop: Callable[[], bool]) -> Iterator[Emission]:
        folder.ask("pause")
        threading.Thread(target=lambda: (until_resting(folder), folder.withdraw("pause"))).start()
        assert not stop()
        seen.extend(kinds(folder))
        yield "finished", None, {"reason": "done"}

    play(long)
    assert worker.main([str(folder.path)]) == 0
    assert seen[-2:] == ["paused", "continued"]
    assert not folder.asked("resting")


def until_resting(folder: RunFolder) -> None:
    while not folder.asked("resting"):
        time.sleep(0.005)


def test_a_paused_run_ends_when_told(folder, play):
    def long(stop: Callable[[], bool]) -> Iterator[Emission]:
        folder.ask("pause")
        threading.Thread(target=lambda: (until_resting(folder), folder.ask("cancel"))).start()
        assert stop()
        yield "cancelled", None, {"message": "stopped"}

    play(long)
    assert worker.main([str(folder.path)]) == 3
    assert kinds(folder)[-3:] == ["paused", "continued", "cancelled"]


@pytest.fixture
def full_disk(monkeypatch):
    """There is no room for the end of a round, three times."""
    monkeypatch.setattr(worker, "ROOM_S", 0.01)
    whole, full = EventLog.append, [3]

    def append(log: EventLog, kind: str, round_: int | None = None, data: Any = None) -> events.Event:
        if kind == "round" and full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(log, kind, round_, data)

    monkeypatch.setattr(EventLog, "append", append)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_waited_out(folder, play, capsys):
    play(two_rounds)
    assert worker.main([str(folder.path)]) == 0
    assert kinds(folder) == ["queued", "started", "profile", "answers", "round", "round", "finished"]
    assert capsys.readouterr().err.count("waiting for room") == 3


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("breaks", [False, True])
def test_a_disk_too_full_for_the_workers_own_log_ends_no_run_without_a_word(
    folder, play, monkeypatch, breaks
):
    class Full:
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("what broke it")
        yield

    monkeypatch.setattr(worker.sys, "stderr", Full())
    play(broken if breaks else two_rounds)
    assert worker.main([str(folder.path)]) == (1 if breaks else 0)
    assert kinds(folder)[-1] == ("failed" if breaks else "finished")


def test_a_second_worker_of_the_same_run_is_refused_and_writes_nothing(folder, play, capsys):
    play(two_rounds)
    before = folder.log.read_bytes()
    with FileLock(folder.path / ".lock"):
        assert worker.main([str(folder.path)]) == 2
    assert "already" in capsys.readouterr().err
    assert folder.log.read_bytes() == before


def test_bad_arguments_exit_2(tmp_path, capsys):
    assert worker.main([]) == 2
    assert worker.main([str(tmp_path / "no-such-run")]) == 2
    assert worker.main([str(tmp_path / "Not A Run")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
