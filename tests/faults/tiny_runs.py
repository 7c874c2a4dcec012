"""Runs of the real worker on a tiny model, and their ends."""

import os
import signal
import sys
from pathlib import Path

from steer_heal.config import HealSettings, heal_settings
from steer_heal.runs.jobs import LocalProcesses
from tests.jobs import until
from tests.rounds import OPEN


def settings(rounds: int = 3) -> HealSettings:
    """A run of a second or two."""
    return heal_settings(
        model="tiny", rounds=rounds, band=(0.3, 0.7), seed=7, filter=OPEN,
        data={"n_answers": 8, "n_plain": 0, "max_new_tokens": 8, "min_kept": 2},
        train={"epochs": 2, "batch_size": 4, "rank": 2}, extract={"n_contexts": 3},
        calibrate={"n_prompts": 2, "n_tokens": 4}, evaluate={"n_vignettes": 3, "n_answers": 3, "controls": 0},
    )  # fmt: skip


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
