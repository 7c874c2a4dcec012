"""Aligned plain-text tables, a line at a time, and what a person sees of progress."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steer_heal.config import COLUMNS, FOUNDATIONS
from steer_heal.printing import say
from steer_heal.records import Agreement, ModelInfo, Trait
from steer_heal.runs.events import plain

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the row's key, its heading, how a number is written, and the least width."""

    key: str
    title: str
    form: str = ""
    width: int = 0

    def cell(self, row: Row) -> str:
        value = row.get(self.key)
        if value is None:
            return "-"
        return clean(value) if isinstance(value, str) else format(value, self.form)


def number(key: str, title: str = "", form: str = ".3f", width: int = 8) -> Column:
    """A column of numbers."""
    return Column(key, title or key, form, width)


def p_of(profile: Mapping[str, float]) -> dict[str, float]:
    """A profile as keys of a row: a foundation's in `COLUMNS`, a pole's its name after "p "."""
    return {COLUMNS.get(name, f"p {name}"): value for name, value in profile.items()}


def probabilities(trait: Trait, *, everything: bool) -> list[Column]:
    """Care and SocialNorms, or all seven; the trait's two poles where it is measured on its own axis."""
    if trait.on_own_axis:
        return [number(f"p {name}", clean(name)) for name in trait.target]
    wanted = FOUNDATIONS if everything else ("Care", "SocialNorms")
    return [number(COLUMNS[name], name) for name in wanted]


def worth(frame: str | None, agreement: Agreement, order_tv: float | None) -> dict[str, Any]:
    """What a profile is worth, as keys of a row."""
    return {
        "frame": frame, "agreement": agreement.value, "agreement_low": agreement.low,
        "agreement_high": agreement.high, "chance": agreement.chance, "order_tv": order_tv,
    }  # fmt: skip


def clean(text: str) -> str:
    """Text that cannot move the cursor or break the line."""
    return "".join(character if character.isprintable() else " " for character in text)


class Table:
    """Head and lines of one table, as wide as the headings, `Column.width` and `rows` ask for."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Row] = ()) -> None:
        self._columns = columns
        self._widths = [
            max([len(column.title), column.width, *(len(column.cell(row)) for row in rows)])
            for column in columns
        ]

    def head(self) -> str:
        return self._line([column.title for column in self._columns])

    def line(self, row: Row) -> str:
        return self._line([column.cell(row) for column in self._columns])

    def _line(self, cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if column.form else cell.ljust(width)
            for column, cell, width in zip(self._columns, cells, self._widths, strict=True)
        ]
        return "  ".join(placed).rstrip()


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The whole table."""
    made = Table(columns, rows)
    return "\n".join([made.head(), *(made.line(row) for row in rows)])


class Out:
    """Where a command writes: results on stdout, as text or as one JSON document; progress on stderr."""

    def __init__(self, *, as_json: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.as_json = as_json
        self.lost: OSError | None = None
        """Why not all of the results could be written."""
        self._clock = clock
        self._told = clock()
        self._live = sys.stderr.isatty()
        self._open = False

    def text(self, *lines: str) -> None:
        """Lines for a person; nothing when JSON is asked for."""
        self.end_progress()
        if not self.as_json:
            self._result("\n".join(lines))

    def document(self, values: Mapping[str, Any]) -> None:
        """The JSON document; nothing when text is asked for."""
        self.end_progress()
        if self.as_json:
            escaped = not (sys.stdout.encoding or "").lower().startswith("utf")
            self._result(json.dumps(plain(values), ensure_ascii=escaped, allow_nan=False, indent=2))

    def _result(self, text: str) -> None:
        self.lost = say(text) or self.lost

    def note(self, message: str) -> None:
        """One line on stderr."""
        self.end_progress()
        say(clean(message), error=True)

    def model(self, info: ModelInfo) -> None:
        """On stderr, what whoever uses this model should know; of the bundled one it is known."""
        if info.note and not info.is_demo:
            self.note(f"{info.name}: {info.note}")

    def progress(self, message: str) -> None:
        """Replaces the last progress on a terminal; elsewhere a line every ten seconds."""
        now = self._clock()
        if self._live:
            say(f"\r\033[K{clean(message)}", error=True, end="")
            self._open = True
        elif now - self._told >= 10.0:
            say(clean(message), error=True)
            self._told = now

    def end_progress(self) -> None:
        if self._open:
            say("\r\033[K", error=True, end="")
            self._open = False
