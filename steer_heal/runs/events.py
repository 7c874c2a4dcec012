"""The append-only log of one run: `events.jsonl`, one JSON object a line, the truth behind the store."""

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self, TypeGuard

from steer_heal.config import SettingsError
from steer_heal.records import Event, RunStatus

FINAL: dict[str, RunStatus] = {
    "finished": "finished",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
}
"""Kinds after which a run writes nothing more unless it is resumed, and the status each leaves."""

_TAIL = 1 << 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events read from a log, and the byte offset after the last complete line: pass it to read on."""

    events: tuple[Event, ...]
    offset: int


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tuples become lists, a number that is not finite becomes None,
    a lone surrogate the replacement character.

    Raises: `TypeError` for what has no JSON form (a tensor, an object).
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"an event cannot hold a {type(value).__name__}")


def parse(line: bytes) -> Event | None:
    """The event of one line, or None where the line is not one. Fields of newer versions are ignored."""
    try:
        raw = plain(json.loads(line))
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    seq, moment, kind = raw.get("seq"), raw.get("time"), raw.get("kind")
    round_, data = raw.get("round"), raw.get("data")
    if not is_index(seq) or not isinstance(kind, str) or not isinstance(moment, int | float):
        return None
    data = data if isinstance(data, dict) else {}
    return Event(seq, float(moment), plain(kind), round_ if is_index(round_) else None, data)


def is_index(value: Any) -> TypeGuard[int]:
    """Whether the value is a whole number that counts something: 0 to 2^31 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def read(path: str | Path, offset: int = 0) -> Chunk:
    """The whole events after byte `offset`; a torn last line stays unread, an unreadable one is passed over.

    Duplicate lines and lines whose `seq` does not rise are dropped. A log that is not there is empty; a log
    shorter than `offset` is read from its start.
    """
    try:
        with open(path, "rb") as file:
            start = offset if offset <= file.seek(0, os.SEEK_END) else 0
            file.seek(start)
            body = file.read()
    except FileNotFoundError:
        return Chunk((), 0)
    end = body.rfind(b"\n") + 1
    return Chunk(tuple(_rising(parse(line) for line in body[:end].split(b"\n"))), start + end)


def _rising(events: Iterable[Event | None]) -> Iterator[Event]:
    last = -1
    for event in events:
        if event is not None and event.seq > last:
            last = event.seq
            yield event


def last(path: str | Path) -> Event | None:
    """The newest whole event, read from the end of the log; None when there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            want = _TAIL
            while True:
                start = max(0, size - want)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")
                whole = lines[1:-1] if start else lines[:-1]
                events = [event for event in map(parse, whole) if event is not None]
                if events:
                    return max(events, key=lambda event: event.seq)
                if start == 0:
                    return None
                want *= 4
    except FileNotFoundError:
        return None


class EventLog:
    """The writer of one log; one at a time, from any thread. A torn last line is cut off when it is opened.

    Raises: `SettingsError` when the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._turn = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: FileIO = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            why = error.strerror or error
            message = f"Cannot write {self.path} ({why}): choose a folder you may write to."
            raise SettingsError(message) from error
        self._file.truncate(read(self.path).offset)
        newest = last(self.path)
        self.next_seq = 0 if newest is None else newest.seq + 1

    def append(self, kind: str, round_: int | None = None, data: Mapping[str, Any] | None = None) -> Event:
        """Writes one event, at once. Raises: `OSError` (a full disk), with the log as it was before."""
        body = plain(data or {})
        with self._turn:
            event = Event(self.next_seq, time.time(), kind, round_, body)
            line = json.dumps(asdict(event), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            self._write(line.encode() + b"\n")
            self.next_seq += 1
        return event

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self._file.fileno()).st_size

    def take(self, lines: bytes) -> None:
        """Writes whole lines that another log of the same run has after this one's. Raises: `OSError`, as
        `append`."""
        with self._turn:
            self._write(lines)
            for event in map(parse, lines.split(b"\n")):
                self.next_seq = self.next_seq if event is None else event.seq + 1

    def _write(self, lines: bytes) -> None:
        before, rest = self.size, memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(before)
            raise

    def sync(self) -> None:
        """Makes what was written so far survive a loss of power."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs and closes; closing twice is harmless."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
