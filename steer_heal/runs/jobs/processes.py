"""Which process works, told from others by what a changed clock does not move; and how one ended."""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from steer_heal.runs.jobs import gpus

_SAME_START_S = 1.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_VMSTAT = Path("/proc/vmstat")
CLUSTER = "ray://"
"""How the host begins of a run that is on a cluster."""
LITTLE = 0.03
"""Share of the machine's memory below which a kill is put down to want of memory."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process: `created` in seconds after the machine's start, and which start that was (`boot`); `gpus`:
    those that it may use, where that was said. Of a run on a cluster `host` is the cluster's address, and the
    process the one that began to listen to it."""

    pid: int
    created: float
    host: str
    boot: str = ""
    gpus: str = ""


def this_process() -> Running:
    """The calling process."""
    return process_record(os.getpid(), os.environ.get(gpus.ALLOWED, ""))


def process_record(pid: int, given: str = "") -> Running:
    """The record of a living process on this host, which was `given` these GPUs. Raises:
    `psutil.NoSuchProcess`."""
    return Running(pid, _created(psutil.Process(pid)), socket.gethostname(), _boot(), given)


def lives_here(process: Running) -> bool:
    """Whether a process of this host still runs; a later one with the same pid does not count."""
    if process.boot != _boot():
        return False
    try:
        found = psutil.Process(process.pid)
        same = abs(_created(found) - process.created) < _SAME_START_S
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send(process: Running, number: signal.Signals) -> None:
    """Signals the process if it runs on this host."""
    if process.host == socket.gethostname() and lives_here(process):
        try:
            psutil.Process(process.pid).send_signal(number)
        except psutil.NoSuchProcess:
            return


def _created(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def memory() -> dict[str, int]:
    """What this process holds, what the machine has left, in bytes, and how often it killed for memory."""
    left = psutil.virtual_memory()
    return {
        "held": psutil.Process().memory_info().rss,
        "left": left.available,
        "total": left.total,
        "kills": out_of_memory_kills(),
    }


def out_of_memory_kills() -> int:
    """How many processes this machine's kernel has killed for want of memory since its start (0: unknown)."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def account(code: int | None, last: dict[str, int], said: str) -> dict[str, Any]:
    """How a worker ended that left no last word, as the data of an `interrupted` event.

    `code`: its exit code, minus the signal's number when it was killed, None when it is not known (it was
    another page's child). `last`: its `memory()` at the last heartbeat. `said`: the last line of its log.
    """
    number = -code if code is not None and code < 0 else None
    name = None if number is None else _name(number)
    kills = out_of_memory_kills() > last["kills"] if "kills" in last else False
    little = bool(last) and last.get("left", 0) < LITTLE * last.get("total", 0)
    for_memory = (number == signal.SIGKILL or code is None) and (kills or little)
    how = (
        f"was killed by {name}" if name else f"ended with exit code {code}" if code is not None else "is gone"
    )
    message = f"Its process {how}"
    if for_memory:
        held, left = (last.get(key, 0) / 1e9 for key in ("held", "left"))
        message += (
            f", for want of memory: it held {held:.1f} GB and {left:.1f} GB were left. Use smaller batches"
        )
    elif number is None and said:
        message += f": {said[:200]}"
    elif number == signal.SIGKILL:
        message += ", by a person or a program"
    message += ". Resume it from its last finished round."
    return {"message": message, "code": code, "signal": name, "out_of_memory": for_memory}


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
