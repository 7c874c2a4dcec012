"""Where runs execute: the one interface behind which a run may be on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from steer_heal.config import HealSettings
from steer_heal.events import Chunk
from steer_heal.records import RunStatus


@dataclass(frozen=True, slots=True)
class JobState:
    """How a run stands now; `message` says why where it did not end well."""

    status: RunStatus
    message: str = ""
    pid: int | None = None


class Launcher(Protocol):
    """Where runs execute. Nothing else may assume that a run shares the caller's machine."""

    def start(self, settings: HealSettings) -> str: ...
    def settings(self, run_id: str) -> HealSettings: ...
    def poll(self, run_id: str) -> JobState: ...
    def cancel(self, run_id: str) -> None: ...
    def pause(self, run_id: str) -> None: ...
    def resume(self, run_id: str) -> None: ...
    def events(self, run_id: str, offset: int = 0) -> Chunk: ...
    def runs(self) -> list[str]: ...
    def advance(self) -> None: ...
