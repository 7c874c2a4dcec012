"""What a browser remembers (ids only) and what the panels that watch runs draw from it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from components import charts, view, view_runs
from components.engine import Engine
from steer_heal.records import RunRow

AUTOMATIC = 6
Memory = dict[str, Any]


def memory() -> gr.BrowserState:
    """Which runs are on the map (None: chosen for the reader) and which round is open. No secrets in it."""
    return gr.BrowserState({"runs": None, "open": None}, storage_key="steer-heal", secret="ids-only")


def remembered(kept: Any) -> Memory:
    """`kept` with whatever is not a list of ids or a round made None: a browser may send anything."""
    kept = kept if isinstance(kept, dict) else {}
    runs, place = kept.get("runs"), kept.get("open")
    if not (isinstance(runs, list) and all(isinstance(r, str) for r in runs)):
        runs = None
    if not (
        isinstance(place, list)
        and len(place) == 2
        and isinstance(place[0], str)
        and isinstance(place[1], int)
    ):
        place = None
    return {"runs": runs, "open": place}


def shown(runs: Sequence[RunRow], kept: Any) -> list[str]:
    """The runs on the map: those chosen that still exist; until one is chosen, the newest and the example."""
    chosen = remembered(kept)["runs"]
    if chosen is not None:
        return [r.run_id for r in runs if r.run_id in chosen]
    newest = sorted(runs, key=lambda r: (r.is_example, r.started_at or 0.0), reverse=True)
    return [r.run_id for r in newest[:AUTOMATIC]]


def opened(kept: Any) -> tuple[str, int] | None:
    """The open round as (run id, round), or None."""
    place = remembered(kept)["open"]
    return None if place is None else (place[0], place[1])


def draw(engine: Engine, kept: Any) -> tuple[dict[str, Any], str, str]:
    """The map, the table of runs, and what the store has to say."""
    runs = engine.runs.rows()
    ids = shown(runs, kept)
    names = {r.run_id: r.name for r in runs}
    figure = charts.moral_map(engine.runs.map(ids), names, opened(kept), engine.runs.controls(ids))
    return figure, view_runs.runs_table(runs, ids), view.note(engine.runs.message())


def digest(figure: dict[str, Any]) -> str:
    """A short text that is the same for the same figure."""
    return f"{zlib.crc32(json.dumps(figure, default=str).encode()):08x}"
