"""Runs of a worker made up for tests (`tests.fake_worker`), and what is asked of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from steer_heal.runs.jobs import LocalProcesses

COMMAND = (sys.executable, "-m", "tests.fake_worker")


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def status(jobs: LocalProcesses, run_id: str) -> str:
    return jobs.poll(run_id).status


def begun(jobs: LocalProcesses, run_id: str) -> bool:
    return any(event.kind == "round" for event in jobs.events(run_id).events)


def last_kind(jobs: LocalProcesses, run_id: str) -> str:
    newest = jobs.folder(run_id).last_event()
    return "" if newest is None else newest.kind
