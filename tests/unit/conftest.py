"""Shared by the unit tests: a launcher whose workers are gone when the test is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from steer_heal.jobs import LocalProcesses
from tests.jobs import COMMAND


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalProcesses]:
    launcher = LocalProcesses(tmp_path / "runs", command=COMMAND)
    yield launcher
    for run_id in launcher.runs():
        process = launcher.folder(run_id).process()
        if process is not None and process.pid != os.getpid() and launcher.folder(run_id).alive(process):
            os.kill(process.pid, signal.SIGKILL)
