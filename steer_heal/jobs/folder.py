"""One run's folder: config.json, events.jsonl, vectors/, adapters/, worker.log, and who works in it."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock
from pydantic import ValidationError

from steer_heal import events
from steer_heal.config import HealSettings, SettingsError, check_run_id
from steer_heal.records import Event

HEARTBEAT_S = 5.0
SILENT_S = 60.0
"""A worker on another host counts as gone when its heartbeat is older than this."""

_SAME_START_S = 5.0


@dataclass(frozen=True, slots=True)
class Running:
    """The process that works in a folder; `created` tells it from a later one with the same pid."""

    pid: int
    created: float
    host: str


def this_process() -> Running:
    """The calling process."""
    return process_record(os.getpid())


def process_record(pid: int) -> Running:
    """The record of a living process on this host. Raises: `psutil.NoSuchProcess`."""
    return Running(pid, psutil.Process(pid).create_time(), socket.gethostname())


class RunFolder:
    """The files of one run. Nothing here decides anything; it reads and writes, each file whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_id = check_run_id(self.path.name)
        self.log = self.path / "events.jsonl"
        self.worker_log = self.path / "worker.log"
        self.lock = FileLock(self.path / ".lock")

    @classmethod
    def create(cls, runs_dir: Path, settings: HealSettings) -> RunFolder:
        """A fresh folder with its config.json, named after trait, time and chance.

        Raises: `SettingsError` when it cannot be written.
        """
        word = settings.trait.split("_")[0].lower()
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        folder = cls(runs_dir / f"{word}-{moment}-{secrets.token_hex(2)}")
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            folder.path.mkdir()
            folder.write("config.json", settings.model_dump_json(indent=2))
        except OSError as error:
            why = error.strerror or error
            message = f"Cannot write the run's folder {folder.path} ({why}): choose another with --runs."
            raise SettingsError(message) from error
        return folder

    def settings(self) -> HealSettings:
        """The run's settings. Raises: `SettingsError` when config.json is missing or of another version."""
        path = self.path / "config.json"
        try:
            return HealSettings.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"Cannot read {path} ({error.strerror}): the run cannot go on.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SettingsError(f"{path}: {where}: {first['msg']}.") from error

    def last_event(self) -> Event | None:
        return events.last(self.log)

    def last_round(self) -> int:
        """The newest round that finished; 0 when none did."""
        done = [event.round or 0 for event in events.read(self.log).events if event.kind == "round"]
        return max(done, default=0)

    def write(self, name: str, text: str) -> None:
        """Writes a small file whole: readers see the old one or the new one. Raises: `OSError`."""
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(self.path / name)

    def claim(self, process: Running) -> None:
        """Records who works here."""
        self.write("process.json", json.dumps(asdict(process)))

    def release(self) -> None:
        """Forgets who worked here and whether that was to be cancelled."""
        for name in ("process.json", "cancel", "heartbeat"):
            (self.path / name).unlink(missing_ok=True)

    def process(self) -> Running | None:
        """Who works or worked here; None before the first start."""
        try:
            raw = json.loads((self.path / "process.json").read_bytes())
            return Running(int(raw["pid"]), float(raw["created"]), str(raw["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def alive(self, process: Running) -> bool:
        """Whether that process still runs: by pid and start on this host, by heartbeat on another."""
        if process.host != socket.gethostname():
            beat = self.age("heartbeat")
            return beat is not None and beat < SILENT_S
        try:
            found = psutil.Process(process.pid)
            same = abs(found.create_time() - process.created) < _SAME_START_S
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def beat(self) -> None:
        """Shows that the worker lives."""
        (self.path / "heartbeat").touch()

    def ask_to_cancel(self) -> None:
        self.write("cancel", "")

    def cancel_asked(self) -> bool:
        return (self.path / "cancel").exists()

    def age(self, name: str) -> float | None:
        """Seconds since the file was written; None when it is not there."""
        try:
            return max(0.0, time.time() - (self.path / name).stat().st_mtime)
        except OSError:
            return None
