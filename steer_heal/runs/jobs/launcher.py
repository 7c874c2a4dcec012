"""Where runs execute: the one interface behind which a run may be on any machine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from steer_heal.config import MAX_RUNS_AT_ONCE, HealSettings, SettingsError
from steer_heal.records import RunStatus
from steer_heal.runs.events import Chunk

AT_ONCE = "STEER_HEAL_RUNS_AT_ONCE"
"""Environment variable by which workers learn how many runs go at a time."""
NICENESS = "STEER_HEAL_NICENESS"
"""Environment variable: how far runs give way to the page, 0 (not at all) to 19."""
GIVE_WAY = 5
LEAST_URGENT = 19

About = Mapping[str, Any]
"""What a run's first event says besides its settings: `sweep` of a sweep's run (`id`, `cell`, `values`)."""


@dataclass(frozen=True, slots=True)
class JobState:
    """How a run stands now; `message` says why where it did not end well."""

    status: RunStatus
    message: str = ""
    pid: int | None = None


class Launcher(Protocol):
    """Where runs execute. Nothing else may assume that a run shares the caller's machine. `address`: `LOCAL`,
    or a cluster's; `places`: how many runs go at a time; `unfit`: of each run with these settings why it
    cannot be there, "" where it can."""

    address: str

    def unfit(self, wanted: Sequence[HealSettings]) -> list[str]: ...
    def start(self, settings: HealSettings, about: About | None = None) -> str: ...
    def settings(self, run_id: str) -> HealSettings: ...
    def adapters(self, run_id: str) -> Path: ...
    def poll(self, run_id: str) -> JobState: ...
    def places(self) -> int: ...
    def cancel(self, run_id: str) -> None: ...
    def pause(self, run_id: str) -> None: ...
    def resume(self, run_id: str) -> None: ...
    def events(self, run_id: str, offset: int = 0) -> Chunk: ...
    def runs(self) -> list[str]: ...
    def labels(self) -> dict[str, dict[str, Any]]: ...
    def label(self, run_id: str, said: dict[str, Any]) -> None: ...
    def delete(self, run_id: str) -> None: ...
    def restore(self, run_id: str) -> None: ...
    def advance(self) -> None: ...
    def close(self) -> None: ...


def room(given: int | None) -> int:
    """How many runs go at a time: as given, else as the environment says, else 1. Errors: `SettingsError`."""
    said = os.environ.get(AT_ONCE, "1") if given is None else str(given)
    if not said.isdecimal() or int(said) > MAX_RUNS_AT_ONCE:
        raise SettingsError(
            f"{said} runs at once cannot be: choose 1 to {MAX_RUNS_AT_ONCE}, or 0 to start none."
        )
    return int(said)


def niceness() -> int:
    """How far runs give way on a busy machine: as the environment says, else 5. Errors: `SettingsError`."""
    said = os.environ.get(NICENESS, str(GIVE_WAY))
    if not said.isdecimal() or int(said) > LEAST_URGENT:
        raise SettingsError(
            f"{NICENESS} is {said!r}: give 0 (runs are as urgent as the page) to {LEAST_URGENT}."
        )
    return int(said)
