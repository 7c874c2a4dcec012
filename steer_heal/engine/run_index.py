"""The runs as the page sees them: logs go into the store as they grow, and a held store stops nothing."""

import threading
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from steer_heal.config import MAX_RUN_NAME_CHARS, HealSettings, SettingsError, stored_settings
from steer_heal.engine.time_left import time_left
from steer_heal.records import CompletionRow, ControlNode, Event, MapNode, RoundDetail, RunRow
from steer_heal.runs import events
from steer_heal.runs.jobs import About, JobState, Launcher
from steer_heal.runs.store import Store, StoreBusy
from steer_heal.runs.store.rows import number

T = TypeVar("T")

EXAMPLE = Path(__file__).parents[1] / "data" / "example_run"
EXAMPLE_ID = "example-care-over-authority"

TOGETHER = 32
"""Runs whose new events are taken in while the store is open once."""

_UNENDED = ("queued", "running", "paused", "interrupted")


class RunIndex:
    """Launcher and store together. Queries are remembered until something changes.

    `every_s`: how often, at most, `watermark` looks at the logs. A held store raises nothing.
    """

    def __init__(
        self, launcher: Launcher, store: Store, *, example: Path | None = EXAMPLE, every_s: float = 0.3
    ) -> None:
        self.launcher = launcher
        self.store = store
        self._example = example
        self._every_s = every_s
        self._looking = threading.Lock()
        self._looked = float("-inf")
        self._offsets: dict[str, int] | None = None
        self._file: int | None = None
        self._states: dict[str, JobState] = {}
        self._open_runs: tuple[str, list[str]] = ("", [])
        self._going: dict[str, dict[str, float | None]] = {}
        self._labels: dict[str, dict[str, Any]] = {}
        self._message = ""
        self._mark = ""
        self._known: dict[Hashable, tuple[str, Any]] = {}

    def watermark(self) -> str:
        """Takes new events into the store; the value changes when anything to be shown has. Never raises."""
        if time.monotonic() - self._looked < self._every_s or not self._looking.acquire(blocking=False):
            return self._mark
        try:
            self._look()
        finally:
            self._looked = time.monotonic()
            self._looking.release()
        return self._mark

    def message(self) -> str:
        """Who holds the store, or why it cannot be used; empty when all is well."""
        return self._message

    def start(self, settings: HealSettings, about: About | None = None) -> str:
        """Queues a run. Raises: `SettingsError`."""
        return self._changed(lambda: self.launcher.start(settings, about))

    def cancel(self, run_id: str) -> None:
        self._changed(lambda: self.launcher.cancel(run_id))

    def pause(self, run_id: str) -> None:
        self._changed(lambda: self.launcher.pause(run_id))

    def settings(self, run_id: str) -> HealSettings:
        """What a run was launched with. Raises: `SettingsError`."""
        if run_id != EXAMPLE_ID or self._example is None:
            return self.launcher.settings(run_id)
        try:
            return stored_settings((self._example / "config.json").read_bytes())[0]
        except (OSError, ValueError) as error:
            raise SettingsError("The example's settings cannot be read: clone another run.") from error

    def adapters(self, run_id: str) -> Path:
        """The folder of the run's adapters. Raises: `SettingsError` for a run that is not there (any more)
        and for the example."""
        if run_id == EXAMPLE_ID:
            raise SettingsError("The example run came without its adapters: start a run of your own.")
        try:
            return self.launcher.adapters(run_id)
        except SettingsError as error:
            said = f"There is no run {run_id} to talk to: it was deleted, or lies elsewhere; choose another."
            raise SettingsError(said) from error

    def rename(self, run_id: str, name: str) -> None:
        """Raises: `SettingsError`."""
        if not 0 < len(name.strip()) <= MAX_RUN_NAME_CHARS:
            raise SettingsError(f"A run's name has 1 to {MAX_RUN_NAME_CHARS} characters: type another.")
        self._changed(lambda: self.launcher.label(run_id, {"name": name.strip()}))

    def hide(self, run_id: str, hidden: bool = True) -> None:
        """Leaves the run out of the table, or takes it in again."""
        self._changed(lambda: self.launcher.label(run_id, {"hidden": hidden}))

    def delete(self, run_id: str) -> None:
        """Deletes a run that has ended; `restore` brings it back for a minute. Raises: `SettingsError`."""

        def act() -> None:
            self.launcher.delete(run_id)
            try:
                self.store.forget(run_id)
            except StoreBusy as busy:
                self.launcher.restore(run_id)
                raise SettingsError(str(busy)) from busy
            (self._offsets or {}).pop(run_id, None)

        with self._looking:
            self._changed(act)

    def restore(self, run_id: str) -> None:
        """Raises: `SettingsError`."""
        self._changed(lambda: self.launcher.restore(run_id))

    def resume(self, run_id: str) -> None:
        self._changed(lambda: self.launcher.resume(run_id))

    def rows(self) -> list[RunRow]:
        """All runs, the newest first, examples last, each with how it stands now."""
        rows = self._ask("runs", self.store.runs, [])
        return [self._with_state(row) for row in rows]

    def map(self, run_ids: list[str]) -> list[MapNode]:
        """The nodes of these runs."""
        return self._ask(("map", *run_ids), lambda: self.store.moral_map(run_ids), [])

    def controls(self, run_ids: list[str]) -> list[ControlNode]:
        """What these runs are held against."""
        return self._ask(("controls", *run_ids), lambda: self.store.controls(run_ids), [])

    def sweep_cells(self, sweep_id: str) -> list[dict[str, Any]]:
        """The finished rounds of a sweep's runs, as in the view of that name."""
        return self._ask(("sweep", sweep_id), lambda: self.store.sweep_cells(sweep_id), [])

    def round(self, run_id: str, round_: int) -> RoundDetail:
        """Raises: `SettingsError` when there is no such round, or the store is held and it is not known."""
        return self._ask(("round", run_id, round_), lambda: self.store.round_detail(run_id, round_))

    def completions(self, run_id: str, round_: int) -> list[CompletionRow]:
        """What the round generated."""
        return self._ask(("completions", run_id, round_), lambda: self.store.completions(run_id, round_), [])

    def _ask(self, key: Hashable, query: Callable[[], T], otherwise: T | None = None) -> T:
        self.watermark()
        mark = self._mark
        known = self._known.get(key)
        if known is not None and known[0] == mark:
            return known[1]
        try:
            found = query()
        except StoreBusy as busy:
            self._message = str(busy)
            if known is not None:
                return known[1]
            if otherwise is None:
                raise SettingsError(str(busy)) from busy
            return otherwise
        except SettingsError:
            if otherwise is None or not self._message:
                raise
            return otherwise
        if len(self._known) > 64:
            self._known.clear()
        self._known[key] = (mark, found)
        return found

    def _changed(self, act: Callable[[], T]) -> T:
        try:
            return act()
        finally:
            self._looked = float("-inf")

    def _look(self) -> None:
        message = ""
        try:
            self.launcher.advance()
        except SettingsError as error:
            message = str(error)
        try:
            self._ingest()
            self._states = {run_id: self._state(run_id) for run_id in self._unended()}
        except (StoreBusy, SettingsError) as error:
            message = str(error)
        self._message = message
        self._labels = self.launcher.labels()
        standing = repr((sorted(self._states.items()), message, self._labels)).encode()
        self._mark = f"{self._stat()}-{zlib.crc32(standing):08x}"

    def _ingest(self) -> None:
        if self._offsets is None or self._inode() != self._file:
            self._offsets = self.store.marks()
            self._file = self._inode()
        for several in batched(self._fresh(self._offsets), TOGETHER):
            self._going |= {run_id: counted(chunk.events) for run_id, chunk, _ in several}
            self.store.ingest_all(several)
            self._offsets |= {run_id: chunk.offset for run_id, chunk, _ in several}

    def _fresh(self, offsets: dict[str, int]) -> Iterator[tuple[str, events.Chunk, bool]]:
        """What the store does not have yet: run id, events, is it the example."""
        if self._example is not None and EXAMPLE_ID not in offsets:
            yield EXAMPLE_ID, events.read(self._example / "events.jsonl"), True
        for run_id in self.launcher.runs():
            chunk = self.launcher.events(run_id, offsets.get(run_id, 0))
            if chunk.events:
                yield run_id, chunk, False

    def _unended(self) -> list[str]:
        """The runs whose logs have no last word, asked of the store only when its file has changed."""
        stat = self._stat()
        if stat != self._open_runs[0]:
            rows = self.store.runs()
            self._open_runs = (
                stat,
                [row.run_id for row in rows if row.status in _UNENDED and not row.is_example],
            )
        return self._open_runs[1]

    def _state(self, run_id: str) -> JobState:
        try:
            return self.launcher.poll(run_id)
        except SettingsError as error:
            return JobState("interrupted", str(error))

    def _with_state(self, row: RunRow) -> RunRow:
        said = self._labels.get(row.run_id, {})
        row = replace(row, name=said.get("name", row.name), hidden=bool(said.get("hidden")))
        state = self._states.get(row.run_id)
        if state is None or row.is_example:
            return row
        eta = self._left(row) if state.status == "running" else None
        counts = self._going.get(row.run_id, {}) if state.status == "running" else {}
        message = state.message or row.message
        return replace(row, status=state.status, message=message, eta=eta, **counts)

    def _left(self, row: RunRow) -> float | None:
        """Seconds left; None where nothing is known of them."""
        times = self._ask(("times", row.run_id), lambda: self.store.stage_times(row.run_id), [])
        return time_left(times, row.rounds, time.time())

    def _inode(self) -> int | None:
        try:
            return self.store.path.stat().st_ino
        except OSError:
            return None

    def _stat(self) -> str:
        try:
            stat = self.store.path.stat()
        except OSError:
            return "none"
        return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def counted(happened: Sequence[Event]) -> dict[str, float | None]:
    """What the last of the events says of how far its stage is, as in `RunRow`."""
    last = next((e for e in reversed(happened) if e.kind in ("progress", "step", "stage", "round")), None)
    if last is None or last.kind not in ("progress", "step"):
        return {"done": None, "total": None, "rate": None}
    done = last.data.get("done", last.data.get("step"))
    return {
        "done": number(done),
        "total": number(last.data.get("total")),
        "rate": number(last.data.get("rate")),
    }


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    rest = iter(items)
    while several := list(islice(rest, size)):
        yield several
