"""The real worker on a tiny model, forked by the nursery: no seconds of imports between two kills."""

import atexit
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from steer_heal.config import HealSettings, heal_settings
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder
from steer_heal.runs.jobs.processes import process_record
from tests.jobs import until
from tests.rounds import OPEN

VOID = {
    "queued",
    "started",
    "resumed",
    "interrupted",
    "paused",
    "continued",
    "progress",
    "cancelled",
    "failed",
}
CLOCKS = {"seconds", "eta"}


def settings(rounds: int = 3) -> HealSettings:
    """A run of a second or two."""
    return heal_settings(
        model="tiny", rounds=rounds, band=(0.3, 0.7), seed=7, filter=OPEN,
        data={"n_answers": 8, "n_plain": 0, "max_new_tokens": 8, "min_kept": 2},
        train={"epochs": 2, "batch_size": 4, "rank": 2}, extract={"n_contexts": 3},
        calibrate={"n_prompts": 2, "n_tokens": 4}, evaluate={"n_vignettes": 3, "n_answers": 3, "controls": 0},
    )  # fmt: skip


class Nursery:
    """The process that forks workers; one for all tests, started at the first use."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(self.folder)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._turn = threading.Lock()
        assert self._line() == "ready"
        atexit.register(self.close)

    def fork(self, folder: RunFolder) -> int:
        with self._turn:
            self.process.stdin.write(f"{folder.path}\n")
            self.process.stdin.flush()
            return int(self._line())

    def _line(self) -> str:
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.process.communicate()
        shutil.rmtree(self.folder)


@cache
def nursery() -> Nursery:
    """The one nursery of this test process."""
    return Nursery()


class Forked:
    """A worker as `subprocess.Popen` shows it, as far as the launcher looks."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        try:
            return int((nursery().folder / f"exit-{self.pid}").read_text())
        except FileNotFoundError:
            return None


class ForkedProcesses(LocalProcesses):
    """The launcher, except that workers come from the nursery and work on the tiny model."""

    def _spawn(self, folder: RunFolder, given: dict[str, str]) -> None:
        pid = nursery().fork(folder)
        self._children[folder.run_id] = Forked(pid)  # type: ignore[assignment]
        with suppress(psutil.NoSuchProcess):
            folder.claim_if_free(process_record(pid))


def kill(jobs: LocalProcesses, run_id: str) -> bool:
    """SIGKILL, if there is still somebody to kill; waits until the launcher knows."""
    process = jobs.folder(run_id).process()
    if process is None or jobs.poll(run_id).status != "running":
        return False
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: jobs.poll(run_id).status != "running")
    return jobs.poll(run_id).status == "interrupted"


def outcome(path: Path) -> dict[Any, Any]:
    """All that must be the same however often a run was cut: its events without clocks and without what a
    resume made void, and the bytes of its vectors and adapters."""
    kept: list[tuple[str, int | None, dict[str, Any]]] = []
    for event in events.read(path / "events.jsonl").events:
        if event.kind == "resumed":
            whole_base = any(kind == "answers" and not round_ for kind, round_, _ in kept)
            kept = [row for row in kept if (row[1] or 0) <= event.data["round"] and (row[1] or whole_base)]
        elif event.kind not in VOID:
            data = {key: value for key, value in event.data.items() if key not in CLOCKS}
            kept.append((event.kind, event.round, data))
    files = sorted([*path.glob("vectors/*.safetensors"), *path.glob("adapters/*/*.safetensors")])
    return {"events": kept, "files": {str(file.relative_to(path)): digest(file) for file in files}}


def digest(file: Path) -> str:
    """Of the bytes, the header's in sorted order: safetensors writes metadata in an order that varies."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8 : 8 + length]), sort_keys=True).encode()
    return hashlib.sha256(header + whole[8 + length :]).hexdigest()
