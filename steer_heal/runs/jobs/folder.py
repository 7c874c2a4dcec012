"""One run's folder: config.json, events.jsonl, vectors/, adapters/, worker.log, and who works in it."""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import FileLock
from pydantic import ValidationError

from steer_heal.config import HealSettings, SettingsError, check_run_id, stored_settings
from steer_heal.records import Event
from steer_heal.runs import events
from steer_heal.runs.jobs.processes import Running, lives_here, memory
from steer_heal.whole_file import write_whole

_ASKED = ("cancel", "pause")
HEARTBEAT_S = 5.0
SILENT_S = 60.0
"""A worker on another host counts as gone when its heartbeat is older than this."""


class RunFolder:
    """The files of one run. Nothing here decides anything; it reads and writes, each file whole."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run_id = check_run_id(self.path.name)
        self.log = self.path / "events.jsonl"

    @property
    def worker_log(self) -> Path:
        """What the worker printed."""
        return self.path / "worker.log"

    @cached_property
    def lock(self) -> FileLock:
        """Held by whoever works in the folder."""
        return FileLock(self.path / ".lock")

    @classmethod
    def create(cls, runs_dir: Path, settings: HealSettings) -> Self:
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
        """The run's settings, without those that a newer version has no use for. Raises: `SettingsError` when
        config.json is missing or no settings of ours."""
        return self._read_settings()[0]

    def resumable(self) -> HealSettings:
        """The run's settings, to go on with. Raises: `SettingsError` also for a run of an older version,
        whose way of healing is gone."""
        settings, older = self._read_settings()
        if older:
            raise SettingsError(
                f"{self.run_id} was begun by an older version, whose way of healing is gone: start a new run."
            )
        return settings

    def _read_settings(self) -> tuple[HealSettings, bool]:
        path = self.path / "config.json"
        try:
            return stored_settings(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"Cannot read {path} ({error.strerror}): the run cannot go on.") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SettingsError(f"{path}: {where}: {first['msg']}.") from error
        except ValueError as error:
            raise SettingsError(f"{path} is no JSON ({error}).") from error

    def last_event(self) -> Event | None:
        return events.last(self.log)

    def last_round(self) -> int:
        """The newest round that finished; 0 when none did."""
        done = [event.round or 0 for event in events.read(self.log).events if event.kind == "round"]
        return max(done, default=0)

    def write(self, name: str, text: str) -> None:
        """`write_whole` in this folder."""
        write_whole(self.path / name, text)

    def claim(self, process: Running) -> None:
        """Records who works here."""
        self.write("process.json", json.dumps(asdict(process)))

    def claim_if_free(self, process: Running) -> None:
        """The same, unless somebody is recorded already: a worker that was quicker keeps its place."""
        fresh = self.path / f".process.{os.getpid()}"
        fresh.write_text(json.dumps(asdict(process)), encoding="utf-8")
        try:
            os.link(fresh, self.path / "process.json")
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if self.process() is None:
                self.claim(process)
        finally:
            fresh.unlink()

    def release(self) -> None:
        """Forgets who worked here and what was asked of it."""
        for name in ("process.json", *_ASKED, "resting", "heartbeat"):
            (self.path / name).unlink(missing_ok=True)

    def process(self) -> Running | None:
        """Who works or worked here; None before the first start."""
        raw = self._read("process.json")
        try:
            said = (str(raw.get(key, "")) for key in ("boot", "gpus"))
            return Running(int(raw["pid"]), float(raw["created"]), str(raw["host"]), *said)
        except (ValueError, KeyError, TypeError):
            return None

    def alive(self, process: Running) -> bool:
        """Whether that process still runs: by pid and start on this host, by heartbeat on another."""
        if process.host == socket.gethostname():
            return lives_here(process)
        try:
            beat = (self.path / "heartbeat").stat().st_mtime
        except OSError:
            return False
        return abs(time.time() - beat) < SILENT_S  # the clocks may differ

    def beat(self) -> None:
        """Shows that the worker lives, and how its memory stands. A full disk or a read-only one stops
        neither it nor the run."""
        try:
            self.write("heartbeat", json.dumps(memory()))
        except OSError:
            with suppress(OSError):
                (self.path / "heartbeat").touch()

    def last_memory(self) -> dict[str, int]:
        """What the last heartbeat said of the worker's memory."""
        return {key: value for key, value in self._read("heartbeat").items() if isinstance(value, int)}

    def last_line(self) -> str:
        """The last line of the worker's own log."""
        try:
            lines = self.worker_log.read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def ask(self, what: str) -> None:
        """Asks the worker to `cancel` or to `pause`; it looks at every step."""
        self.write(what, "")

    def asked(self, what: str) -> bool:
        return (self.path / what).exists()

    def withdraw(self, what: str) -> None:
        """Takes what was asked back."""
        (self.path / what).unlink(missing_ok=True)

    def rest(self, resting: bool) -> None:
        """Says whether the worker has stopped where it is, until it may go on."""
        with suppress(OSError):
            (self.path / "resting").touch() if resting else self.withdraw("resting")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            raw = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return raw if isinstance(raw, dict) else {}
