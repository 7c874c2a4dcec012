"""Runs of a worker made up for tests (`tests.fake_worker`), and what is asked of them."""

import sys
import time
from collections.abc import Callable
from typing import Any

from steer_heal.config import heal_settings
from steer_heal.runs.jobs import LocalProcesses

COMMAND = (sys.executable, "-m", "tests.fake_worker")


def until(true: Callable[[], bool], seconds: float = 240.0, every_s: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every_s)


def status(jobs: LocalProcesses, run_id: str) -> str:
    return jobs.poll(run_id).status


def start(jobs: LocalProcesses, name: str, **settings: Any) -> str:
    """The id of a run of the demo that does what its name says, once its first round has been."""
    run_id = jobs.start(heal_settings(model="demo", name=name, **settings))
    until(lambda: begun(jobs, run_id))
    return run_id


def begun(jobs: LocalProcesses, run_id: str) -> bool:
    return any(event.kind == "round" for event in jobs.events(run_id).events)


def last_kind(jobs: LocalProcesses, run_id: str) -> str:
    newest = jobs.folder(run_id).last_event()
    return "" if newest is None else newest.kind
