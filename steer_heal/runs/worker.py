"""Works one run through in this process: `python -m steer_heal.runs.worker DIR`. It never opens DuckDB."""

import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import Timeout

from steer_heal import heal, models
from steer_heal.config import HealSettings, SettingsError
from steer_heal.printing import print_anything
from steer_heal.records import Event, ModelInfo, RunStatus
from steer_heal.runs import events
from steer_heal.runs.events import FINAL, EventLog
from steer_heal.runs.jobs.folder import HEARTBEAT_S, RunFolder
from steer_heal.runs.jobs.local import LocalProcesses
from steer_heal.runs.jobs.processes import this_process

OnEvent = Callable[[Event], None]
OnModel = Callable[[ModelInfo], None]
EXIT = {"finished": 0, "failed": 1, "cancelled": 3}
LOOK_S = 0.2
"""How often a paused run looks whether it may go on."""
CACHE = "cache"
"""Beside the folder of the runs, where the page and the command line keep theirs too."""
ROOM_S = 2.0
"""How often one looks for room on a full disk."""
_SYNCED = {"round", *FINAL}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when the run finished; 1 failed, 2 could not begin, 3 cancelled."""
    print_anything()
    paths = list(sys.argv[1:] if arguments is None else arguments)
    if len(paths) != 1:
        print("usage: python -m steer_heal.runs.worker RUN_DIR", file=sys.stderr)
        return 2
    try:
        folder = RunFolder(Path(paths[0]).absolute())
        with stopping() as stopped:
            code = EXIT[work(folder, stopped)]
        LocalProcesses(folder.path.parent).advance()  # the next in the queue, also when no page is open
        return code
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one ends the process as ever."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, _frame: object) -> None:
        stopped.set()
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(
    folder: RunFolder,
    stopped: threading.Event,
    on_event: OnEvent | None = None,
    on_model: OnModel | None = None,
) -> RunStatus:
    """Works a run from its last finished round to its end, writing its log; gives how it ended.

    `on_event` hears of each event once it is written, `on_model` of the loaded model. Raises: `SettingsError`
    when the folder cannot be used or another process works in it; the log is then as it was.
    """
    settings = folder.resumable()
    try:
        with folder.lock.acquire(blocking=False), _beating(folder), EventLog(folder.log) as log:
            folder.claim(this_process())
            return _Run(folder, log, stopped, on_event, on_model).work(settings)
    except Timeout as error:
        raise SettingsError(f"Run {folder.run_id} is already being worked on: wait for it to end.") from error


@contextmanager
def _beating(folder: RunFolder) -> Iterator[None]:
    """Keeps the heartbeat fresh, also through a long step."""
    ended = threading.Event()

    def beat() -> None:
        while True:
            folder.beat()
            if ended.wait(HEARTBEAT_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(eq=False)
class _Run:
    """The log being written, and what ends the run early."""

    _folder: RunFolder
    _log: EventLog
    _stopped: threading.Event
    _on_event: OnEvent | None
    _on_model: OnModel | None
    _saying: threading.Lock = field(default_factory=threading.Lock)
    _resting: threading.Lock = field(default_factory=threading.Lock)

    def work(self, settings: HealSettings) -> RunStatus:
        try:
            return self._loop(settings)
        except SettingsError as error:
            return self._say("failed", None, {"message": str(error)})
        except Exception as error:  # noqa: BLE001 - whatever broke a run is its last event, for a person to read
            _note(traceback.format_exc())
            return self._say("failed", None, {"message": broke(error, self._folder.worker_log)})

    def _loop(self, settings: HealSettings) -> RunStatus:
        earlier = events.read(self._folder.log).events
        done = self._folder.last_round()
        if any(event.kind == "started" for event in earlier):
            self._say("resumed", None, {"round": done, "pid": os.getpid(), "host": socket.gethostname()})
        else:
            about = {"settings": settings.model_dump(mode="json"), "pid": os.getpid()}
            self._say("started", None, {**about, "host": socket.gethostname()})
        lm = models.load(settings.model)
        if self._on_model is not None:
            self._on_model(lm.info)
        whole_base = any(event.kind == "answers" and event.round == 0 for event in earlier)
        status: RunStatus = "failed"
        for kind, round_, data in heal.run(
            lm,
            settings,
            self._folder.path,
            start_round=done,
            earlier=earlier if whole_base else (),
            cache_dir=self._folder.path.parent.parent / CACHE,
            stop=self._stop,
        ):
            status = self._say(kind, round_, data)
        return status

    def _stop(self) -> bool:
        """Whether to end now; asked at every step, it also rests here while a pause is asked for."""
        if self._folder.asked("pause") and not self._over():
            with self._resting:
                self._rest()
        return self._over()

    def _over(self) -> bool:
        return self._stopped.is_set() or self._folder.asked("cancel")

    def _rest(self) -> None:
        if not self._folder.asked("pause"):
            return
        self._say("paused", None, {})
        self._folder.rest(True)
        try:
            while self._folder.asked("pause") and not self._over():
                self._stopped.wait(LOOK_S)
        finally:
            self._folder.rest(False)
            self._say("continued", None, {})

    def _say(self, kind: str, round_: int | None, data: dict) -> RunStatus:
        """Writes one event; gives the status the run has after it. A full disk is waited out."""
        with self._saying:
            event = self._written(kind, round_, data)
            if self._on_event is not None:
                self._on_event(event)
        return FINAL.get(kind, "running")

    def _written(self, kind: str, round_: int | None, data: dict) -> Event:
        while True:
            try:
                event = self._log.append(kind, round_, data)
                if kind in _SYNCED:
                    self._log.sync()
                return event
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self._over():
                    raise
                _note(f"{error.strerror}: waiting for room to write {kind}\n")
            self._stopped.wait(ROOM_S)


def broke(error: Exception, log: Path) -> str:
    """What broke a run, in words; of want of memory also what to lower. `log` has the whole of it."""
    what = str(error).strip().partition("\n")[0] or "no message"
    less = ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        less = " Lower train.batch_size or data.max_new_tokens, or let fewer runs go at once."
    return f"{type(error).__name__}: {what} (the whole of it is in {log}).{less}"


def _note(text: str) -> None:
    """Writes to the worker's own log, which lies on the same disk: when that is full, without it."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
