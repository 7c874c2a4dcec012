"""Runs of the real worker on a tiny model, and their ends."""

import os
import signal
import sys
from pathlib import Path

from steer_heal.config import HealSettings
from steer_heal.runs.jobs import LocalProcesses
from tests.jobs import until
from tests.rounds import tiny_run


def settings(rounds: int = 3) -> HealSettings:
    return tiny_run(rounds=rounds, seed=7)


def launcher(runs: Path, at_once: int = 1) -> LocalProcesses:
    return LocalProcesses(runs, at_once=at_once, command=(sys.executable, "-m", "tests.faults.tiny_worker"))


def kill(jobs: LocalProcesses, run_id: str) -> bool:
    """SIGKILL, if there is still somebody to kill; waits until the launcher knows."""
    process = jobs.folder(run_id).process()
    if process is None or jobs.poll(run_id).status != "running":
        return False
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: jobs.poll(run_id).status != "running")
    return jobs.poll(run_id).status == "interrupted"
