"""Runs as processes of this machine: they outlive the page, wait their turn, are found again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from steer_heal.config import LOCAL, MAX_QUEUED_RUNS, RUN_ID, HealSettings, SettingsError, check_run_id
from steer_heal.runs import events
from steer_heal.runs.events import FINAL, Chunk, EventLog
from steer_heal.runs.jobs import gpus
from steer_heal.runs.jobs.folder import RunFolder
from steer_heal.runs.jobs.launcher import AT_ONCE, About, JobState, niceness, room
from steer_heal.runs.jobs.processes import CLUSTER, Running, account, process_record, send
from steer_heal.runs.jobs.shelf import Shelf

LEAST_ROOM = 100_000
"""Bytes free on the disk below which a run is said to wait for room."""
_ROOT = Path(__file__).parents[3]


class LocalProcesses:
    """Each run is a process of its own in `runs_dir/<id>/`; at most `at_once` at a time, the rest are queued.

    Several of these may share a folder, in one process or in many: a file lock lets one decide at a time, so
    no run starts twice. `at_once` is the environment's `STEER_HEAL_RUNS_AT_ONCE`, else 1, when not given; a
    paused run keeps its place. Runs that go at once share out the GPUs of `CUDA_VISIBLE_DEVICES`, and give
    way to the page as far as `STEER_HEAL_NICENESS` says. `command` plus
    the folder is what is started; `grace_s` is how long a cancelled run has to end by itself. Bad input and
    folders that cannot be written raise `SettingsError`.
    """

    address = LOCAL

    def __init__(
        self,
        runs_dir: str | Path,
        *,
        at_once: int | None = None,
        command: Sequence[str] = (sys.executable, "-m", "steer_heal.runs.worker"),
        grace_s: float = 20.0,
    ) -> None:
        self.runs_dir = Path(runs_dir).absolute()
        self.at_once, self._niceness = room(at_once), niceness()
        self.grace_s = grace_s
        self._command = tuple(command)
        self._shelf = Shelf(self.runs_dir)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._last_words: dict[str, tuple[int, int, JobState | None]] = {}
        self._asked: dict[str, float] = {}
        self._ages: dict[str, tuple[float, str]] = {}

    def start(self, settings: HealSettings, about: About | None = None) -> str:
        """Queues a run, and starts it when there is room. Gives its id."""
        waiting = sum(self.poll(known).status == "queued" for known in self.runs())
        if waiting >= MAX_QUEUED_RUNS:
            raise SettingsError(f"{waiting} runs are waiting already: cancel some, or launch this one later.")
        run_id = self.create(settings, about=about).run_id
        self.advance()
        return run_id

    def create(
        self, settings: HealSettings, *, worker: Running | None = None, about: About | None = None
    ) -> RunFolder:
        """A queued run; with `worker` that process has it already, and nobody else will start it."""
        folder = RunFolder.create(self.runs_dir, settings)
        if worker is not None:
            folder.claim(worker)
        with EventLog(folder.log) as log:
            log.append("queued", None, {"settings": settings.model_dump(mode="json"), **(about or {})})
        return folder

    def folder(self, run_id: str) -> RunFolder:
        """The run's folder. Raises: `SettingsError` when there is none."""
        folder = RunFolder(self.runs_dir / check_run_id(run_id))
        if not folder.log.exists():
            raise SettingsError(
                f"There is no run {run_id} in {self.runs_dir}: copy an id from the table of runs."
            )
        return folder

    def settings(self, run_id: str) -> HealSettings:
        """What the run was launched with."""
        return self.folder(run_id).settings()

    def adapters(self, run_id: str) -> Path:
        """The folder on this machine in which the run's adapters lie, a round each."""
        return self.folder(run_id).path / "adapters"

    def runs(self) -> list[str]:
        """The ids of all runs in the folder, the oldest first."""
        try:
            with os.scandir(self.runs_dir) as entries:
                names = [entry.name for entry in entries if RUN_ID.fullmatch(entry.name) and entry.is_dir()]
        except OSError:
            return []
        known = self._ages
        here = [name for name in names if os.path.exists(f"{self.runs_dir}/{name}/events.jsonl")]
        self._ages = ages = {name: known.get(name) or self._age(name) for name in here}
        return sorted(ages, key=ages.__getitem__)

    def _age(self, run_id: str) -> tuple[float, str]:
        try:
            return (self.runs_dir / run_id / "config.json").stat().st_mtime, run_id
        except OSError:
            return 0.0, run_id

    def events(self, run_id: str, offset: int = 0) -> Chunk:
        """The run's events after byte `offset` of its log."""
        log = f"{self.runs_dir}/{check_run_id(run_id)}/events.jsonl"
        with suppress(OSError):
            if os.stat(log).st_size == offset:
                return Chunk((), offset)
        return events.read(Path(log), offset)

    def poll(self, run_id: str) -> JobState:
        """How the run stands: its last word when it said one, else whether its process lives."""
        folder = self.folder(run_id)
        if ended := self._ended(folder):
            return ended
        process = folder.process()
        if process is None:
            held = folder.asked("pause")
            return JobState("paused", "before it has begun") if held else JobState("queued")
        child = self._children.get(run_id)
        code = child.poll() if child is not None and child.pid == process.pid else None
        if folder.alive(process):
            return _going(folder, process)
        if ended := self._ended(folder):
            return ended
        if folder.asked("cancel"):
            return JobState("cancelled")
        if process.host.startswith(CLUSTER):
            said = f"For a minute nobody has listened to {process.host}: `sweep resume` listens again."
            return JobState("interrupted", said)
        how = account(code, folder.last_memory(), folder.last_line())
        return JobState("interrupted", how["message"], process.pid)

    def places(self) -> int:
        """How many runs go at a time."""
        return self.at_once

    def unfit(self, wanted: Sequence[HealSettings]) -> list[str]:
        """What keeps runs from being here is told by `runs.validate.check`."""
        return [""] * len(wanted)

    def close(self) -> None:
        """Runs are processes of their own, and go on."""

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
            process = folder.process()
            if process is not None and state.status in ("running", "paused"):
                folder.ask("cancel")
                send(process, signal.SIGTERM)
            elif state.status in ("queued", "paused", "interrupted"):
                _close(folder, f"cancelled while {state.status}")
            else:
                raise SettingsError(f"Run {run_id} is {state.status}: there is nothing to cancel.")

    def pause(self, run_id: str) -> None:
        """Asks the run to rest after its step, where it is, until `resume`; a queued one is held back."""
        with self._deciding():
            folder, state = self.folder(run_id), self.poll(run_id)
            if state.status not in ("running", "queued"):
                raise SettingsError(f"Run {run_id} is {state.status}: only one that runs or waits can pause.")
            folder.ask("pause")

    def resume(self, run_id: str) -> None:
        """Lets a paused run go on, at once, where it is; queues one that did not finish, which then goes on
        after its last finished round."""
        with self._deciding():
            folder, state = self.folder(run_id), self.poll(run_id)
            going_on = state.status == "paused" or (state.status == "running" and folder.asked("pause"))
            folder.withdraw("pause")
        if not going_on:
            self.reopen(run_id)
        self.advance()

    def labels(self) -> dict[str, dict[str, Any]]:
        """By run id its `name`, where one was given later, and whether it is `hidden`."""
        return self._shelf.labels()

    def label(self, run_id: str, said: dict[str, Any]) -> None:
        """Adds to what is said of a run; its own files stay as they are."""
        with self._deciding():
            self._shelf.label(check_run_id(run_id), said)

    def delete(self, run_id: str) -> None:
        """Deletes a run that has ended, with its folder; for a minute it can be restored."""
        with self._deciding():
            state = self.poll(run_id)
            if state.status in ("running", "paused"):
                raise SettingsError(f"Run {run_id} is {state.status}: cancel it before you delete it.")
            self._shelf.put_away(run_id)

    def restore(self, run_id: str) -> None:
        """Brings back what was just deleted."""
        with self._deciding():
            self._shelf.bring_back(check_run_id(run_id))

    def reopen(self, run_id: str, *, worker: Running | None = None) -> RunFolder:
        """The same without starting it; with `worker` that process has it already."""
        with self._deciding():
            folder, state = self.folder(run_id), self.poll(run_id)
            if state.status not in ("cancelled", "failed", "interrupted"):
                raise SettingsError(
                    f"Run {run_id} is {state.status}: only one that ended early can be resumed."
                )
            folder.resumable()
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
            self._shelf.sweep()
            states = {run_id: self.poll(run_id) for run_id in self.runs()}
            for run_id, state in states.items():
                if state.status in ("running", "paused", "cancelled", "interrupted"):
                    self._enforce(self.folder(run_id), state)
            free = self.at_once - sum(state.pid is not None for state in states.values() if _busy(state))
            waiting = [run_id for run_id, state in states.items() if state.status == "queued"]
            here, busy = gpus.visible(), [run_id for run_id, state in states.items() if _busy(state)]
            taken = [gpu for run_id in busy for gpu in self._gpus_of(run_id)]
            for run_id in waiting[: max(0, free)]:
                given = gpus.share(here, taken, self.at_once)
                taken += given
                self._spawn(self.folder(run_id), gpus.environment(here, given))

    def _gpus_of(self, run_id: str) -> list[str]:
        process = self.folder(run_id).process()
        return process.gpus.split(",") if process and process.gpus else []

    def _enforce(self, folder: RunFolder, state: JobState) -> None:
        """Kills what did not end in time; writes the last word of what could not say it itself."""
        process = folder.process()
        if process is None or self._ended(folder) is not None:
            return
        if _busy(state) and folder.asked("cancel"):
            since = self._asked.setdefault(folder.run_id, time.monotonic())
            if time.monotonic() - since > self.grace_s:
                send(process, signal.SIGKILL)
        elif state.status == "cancelled":
            _close(folder, "ended before it could say so")
        elif state.status == "interrupted" and process.host == socket.gethostname():
            self._note_end(folder, process)

    def _note_end(self, folder: RunFolder, process: Running) -> None:
        """Makes how a worker ended an event; later, when the log cannot be written now or is in use."""
        child = self._children.get(folder.run_id)
        ours = child is not None and child.pid == process.pid
        code = child.poll() if child is not None and ours else None
        if ours and code is None:
            return  # dead, but not yet told how
        how = account(code, folder.last_memory(), folder.last_line())
        try:
            with folder.lock.acquire(blocking=False), EventLog(folder.log) as log:
                log.append("interrupted", None, {**how, "pid": process.pid, "host": process.host})
        except (Timeout, OSError, SettingsError):
            return

    def _spawn(self, folder: RunFolder, given: dict[str, str]) -> None:
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with open(folder.worker_log, "ab") as out:
            child = subprocess.Popen(
                (*self._command, str(folder.path)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, AT_ONCE: str(self.at_once), **given},
            )  # fmt: skip
        self._children[folder.run_id] = child
        self._asked.pop(folder.run_id, None)
        try:
            folder.claim_if_free(process_record(child.pid, given.get(gpus.ALLOWED, "")))
            psutil.Process(child.pid).nice(max(self._niceness, psutil.Process().nice()))
        except psutil.NoSuchProcess:
            return

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


def _busy(state: JobState) -> bool:
    return state.status in ("running", "paused")


def _going(folder: RunFolder, process: Running) -> JobState:
    """The state of a run whose process lives."""
    pid = None if process.host.startswith(CLUSTER) else process.pid
    if folder.asked("cancel"):
        return JobState("running", "stopping after its step", pid)
    if folder.asked("pause"):
        resting = folder.asked("resting")
        return JobState("paused" if resting else "running", "" if resting else "pausing", pid)
    full = shutil.disk_usage(folder.path).free < LEAST_ROOM
    said = "its disk is full: it waits until there is room" if full else ""
    return JobState("running", said, pid)


def _close(folder: RunFolder, message: str) -> None:
    with EventLog(folder.log) as log:
        log.append("cancelled", None, {"message": message})
