"""Runs of the real worker on a tiny model, and their ends; as a process it is the worker of one:
`python -m tests.faults.tiny_runs FOLDER`."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from steer_heal.config import HealSettings
from steer_heal.runs import worker
from steer_heal.runs.jobs import LocalProcesses
from tests import tiny
from tests.jobs import until
from tests.rounds import tiny_run


def settings(rounds: int = 3) -> HealSettings:
    return tiny_run(rounds=rounds, seed=7)


def launcher(runs: Path, at_once: int = 1) -> LocalProcesses:
    return LocalProcesses(runs, at_once=at_once, command=(sys.executable, "-m", "tests.faults.tiny_runs"))


def kill(jobs: LocalProcesses, run_id: str) -> bool:
    """SIGKILL, if there is still somebody to kill; waits until the launcher knows."""
    process = jobs.folder(run_id).process()
    if process is None or jobs.poll(run_id).status != "running":
        return False
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: jobs.poll(run_id).status != "running")
    return jobs.poll(run_id).status == "interrupted"


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker.models.load = lambda _name: tiny.language_model("llama", n_layers=4)  # type: ignore[assignment]
    # The test decides what is started next.
    worker.LocalProcesses = lambda *_a, **_k: SimpleNamespace(advance=lambda: None)  # type: ignore
    sys.exit(worker.main(sys.argv[1:]))
