"""Runs as processes of this machine: they outlive the page, wait their turn, are found again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
from filelock import FileLock, Timeout

from steer_heal import events
from steer_heal.config import RUN_ID, HealSettings, SettingsError, check_run_id
from steer_heal.events import FINAL, Chunk, EventLog
from steer_heal.jobs.folder import RunFolder, Running, process_record
from steer_heal.records import RunStatus

NICENESS = 5
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class JobState:
    """How a run stands now; `message` says why where it did not end well."""

    status: RunStatus
    message: str = ""
    pid: int | None = None


class Launcher(Protocol):
    """Where runs execute. Nothing else may assume that a run shares the caller's machine."""

    def start(self, settings: HealSettings) -> str: ...
    def poll(self, run_id: str) -> JobState: ...
    def cancel(self, run_id: str) -> None: ...
    def resume(self, run_id: str) -> None: ...
    def events(self, run_id: str, offset: int = 0) -> Chunk: ...
    def runs(self) -> list[str]: ...
    def advance(self) -> None: ...


class LocalProcesses:
    """Each run is a process of its own in `runs_dir/<id>/`; at most `at_once` at a time, the rest are queued.

    Several of these may share a folder, in one process or in many: a file lock lets one decide at a time, so
    no run starts twice. `command` plus the folder is what is started; `grace_s` is how long a cancelled run
    has to end by itself. Bad input and folders that cannot be written raise `SettingsError`.
    """

    def __init__(
        self,
        runs_dir: str | Path,
        *,
        at_once: int = 1,
        command: Sequence[str] = (sys.executable, "-m", "steer_heal.worker"),
        grace_s: float = 20.0,
    ) -> None:
        self.runs_dir = Path(runs_dir).absolute()
        self.at_once = at_once
        self.grace_s = grace_s
        self._command = tuple(command)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._last_words: dict[str, tuple[int, int, JobState | None]] = {}

    def start(self, settings: HealSettings) -> str:
        """Queues a run, and starts it when there is room. Gives its id."""
        run_id = self.create(settings).run_id
        self.advance()
        return run_id

    def create(self, settings: HealSettings, *, worker: Running | None = None) -> RunFolder:
        """A queued run; with `worker` that process has it already, and nobody else will start it."""
        folder = RunFolder.create(self.runs_dir, settings)
        if worker is not None:
            folder.claim(worker)
        with EventLog(folder.log) as log:
            log.append("queued", None, {"settings": settings.model_dump(mode="json")})
        return folder

    def folder(self, run_id: str) -> RunFolder:
        """The run's folder. Raises: `SettingsError` when there is none."""
        folder = RunFolder(self.runs_dir / check_run_id(run_id))
        if not folder.log.exists():
            raise SettingsError(
                f"There is no run {run_id} in {self.runs_dir}: copy an id from the table of runs."
            )
        return folder

    def runs(self) -> list[str]:
        """The ids of all runs in the folder, the oldest first."""
        try:
            with os.scandir(self.runs_dir) as entries:
                names = [entry.name for entry in entries if RUN_ID.fullmatch(entry.name) and entry.is_dir()]
        except OSError:
            return []
        found = [
            (self._age(name), name) for name in names if (self.runs_dir / name / "events.jsonl").exists()
        ]
        return [name for _, name in sorted(found)]

    def _age(self, run_id: str) -> tuple[float, str]:
        try:
            return (self.runs_dir / run_id / "config.json").stat().st_mtime, run_id
        except OSError:
            return 0.0, run_id

    def events(self, run_id: str, offset: int = 0) -> Chunk:
        """The run's events after byte `offset` of its log."""
        return events.read(RunFolder(self.runs_dir / check_run_id(run_id)).log, offset)

    def poll(self, run_id: str) -> JobState:
        """How the run stands: its last word when it said one, else whether its process lives."""
        folder = self.folder(run_id)
        if ended := self._ended(folder):
            return ended
        process = folder.process()
        if process is None:
            return JobState("queued")
        child = self._children.get(run_id)
        code = None if child is None else child.poll()
        if folder.alive(process):
            return JobState("running", "stopping" if folder.cancel_asked() else "", process.pid)
        if ended := self._ended(folder):
            return ended
        if folder.cancel_asked():
            return JobState("cancelled")
        return JobState("interrupted", _why(folder, code), process.pid)

    def _ended(self, folder: RunFolder) -> JobState | None:
        """The state a run's last word leaves it in; read again only when the log has changed."""
        stat = folder.log.stat()
        known = self._last_words.get(folder.run_id)
        if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
            newest = folder.last_event()
            state = None
            if newest is not None and newest.kind in FINAL:
                said = newest.data.get("message") or newest.data.get("reason") or ""
                state = JobState(FINAL[newest.kind], str(said))
            known = self._last_words[folder.run_id] = (stat.st_mtime_ns, stat.st_size, state)
        return known[2]

    def cancel(self, run_id: str) -> None:
        """Asks the run to end after its step; it is killed when it has not after the grace time."""
        with self._deciding():
            folder, state = self.folder(run_id), self.poll(run_id)
            if state.status == "running":
                folder.ask_to_cancel()
                process = folder.process()
                if process is not None:
                    _signal(folder, process, signal.SIGTERM)
            elif state.status in ("queued", "interrupted"):
                _close(folder, f"cancelled while {state.status}")
            else:
                raise SettingsError(f"Run {run_id} is {state.status}: there is nothing to cancel.")

    def resume(self, run_id: str) -> None:
        """Queues a run that did not finish; it goes on after its last finished round."""
        self.reopen(run_id)
        self.advance()

    def reopen(self, run_id: str, *, worker: Running | None = None) -> RunFolder:
        """The same without starting it; with `worker` that process has it already."""
        with self._deciding():
            folder, state = self.folder(run_id), self.poll(run_id)
            if state.status not in ("cancelled", "failed", "interrupted"):
                raise SettingsError(
                    f"Run {run_id} is {state.status}: only one that ended early can be resumed."
                )
            folder.settings()
            with EventLog(folder.log) as log:
                log.append("queued", None, {"after": state.status})
            folder.release()
            if worker is not None:
                folder.claim(worker)
            return folder

    def advance(self) -> None:
        """Starts queued runs while there is room; ends those that did not stop in time. Call it often."""
        if not self.runs_dir.is_dir():
            return
        with self._deciding():
            states = {run_id: self.poll(run_id) for run_id in self.runs()}
            for run_id, state in states.items():
                if state.status in ("running", "cancelled"):
                    self._enforce(self.folder(run_id), state)
            room = self.at_once - sum(state.status == "running" for state in states.values())
            waiting = [run_id for run_id, state in states.items() if state.status == "queued"]
            for run_id in waiting[: max(0, room)]:
                self._spawn(self.folder(run_id))

    def _enforce(self, folder: RunFolder, state: JobState) -> None:
        asked = folder.age("cancel")
        if asked is None:
            return
        process = folder.process()
        if state.status == "running" and process is not None and asked > self.grace_s:
            _signal(folder, process, signal.SIGKILL)
        elif state.status == "cancelled" and self._ended(folder) is None:
            _close(folder, "ended before it could say so")

    def _spawn(self, folder: RunFolder) -> None:
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with open(folder.worker_log, "ab") as out:
            child = subprocess.Popen(
                (*self._command, str(folder.path)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        self._children[folder.run_id] = child
        folder.claim(process_record(child.pid))
        psutil.Process(child.pid).nice(NICENESS)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        try:
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.runs_dir / ".lock", timeout=10):
                yield
        except Timeout as error:
            raise SettingsError(
                f"Another program has held {self.runs_dir} for ten seconds: try again."
            ) from error
        except OSError as error:
            why = error.strerror or error
            raise SettingsError(
                f"Cannot write {self.runs_dir} ({why}): choose another with --runs."
            ) from error


def _close(folder: RunFolder, message: str) -> None:
    with EventLog(folder.log) as log:
        log.append("cancelled", None, {"message": message})


def _signal(folder: RunFolder, process: Running, number: signal.Signals) -> None:
    if process.host == socket.gethostname() and folder.alive(process):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process.pid).send_signal(number)


def _why(folder: RunFolder, code: int | None) -> str:
    if code is not None and code < 0:
        hint = ", often for want of memory" if -code == signal.SIGKILL else ""
        return f"Its process was killed by signal {-code}{hint}."
    try:
        lines = folder.worker_log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"Its process ended without a last word{': ' + lines[-1][:200] if lines else ''}."
