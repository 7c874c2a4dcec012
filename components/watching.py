"""What a browser remembers (ids only) and what the panels that watch runs draw from it."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import gradio as gr

from components import charts, plot, view, view_runs
from components.engine import Engine
from steer_heal.config import DEFAULT_TRAIT, SettingsError
from steer_heal.records import MapNode, RunRow

AUTOMATIC = 6
MAX_CARDS = 2
MAX_ROWS = 100
"""Of the table of runs: thousands would take a browser seconds, whenever anything changes."""
GOING = ("running", "paused", "queued")
Memory = dict[str, Any]


def memory() -> gr.BrowserState:
    """Which runs are on the map (None: chosen for the reader), which round and which sweep are open, and
    which run was started here last. No secrets in it."""
    return gr.BrowserState(remembered(None), storage_key="steer-heal", secret="ids-only")


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
    ids = {key: kept[key] if isinstance(kept.get(key), str) else None for key in ("mine", "sweep")}
    wanted = {key: kept.get(key) is True for key in ("all", "older")}
    return {"runs": runs, "open": place, **wanted, **ids}


def started(kept: Memory, run_id: str) -> Memory:
    """The same memory after this run was started here."""
    return {**kept, "runs": None if kept["runs"] is None else [*kept["runs"], run_id], "mine": run_id}


def adopt(kept: Any, request: gr.Request) -> Memory:
    """What the browser remembers, or the runs and the round that its address names."""
    query, memory = dict(request.query_params), remembered(kept)
    if "runs" in query:
        memory["runs"] = [run for run in query["runs"].split(",") if run]
    run, colon, number = query.get("open", "").rpartition(":")
    if colon and number.isdecimal():
        memory["open"] = [run, int(number)]
    return memory


def shown(runs: Sequence[RunRow], kept: Any, model: str) -> list[str]:
    """The runs on the map: those chosen that still exist; until one is chosen, the newest of this model and
    its example."""
    chosen = remembered(kept)["runs"]
    if chosen is not None:
        return [r.run_id for r in runs if r.run_id in chosen]
    newest = sorted(
        (r for r in runs if r.model == model), key=lambda r: (r.is_example, r.started_at or 0.0), reverse=True
    )
    return [r.run_id for r in newest[:AUTOMATIC]]


def opened(kept: Any) -> tuple[str, int] | None:
    """The open round as (run id, round), or None."""
    place = remembered(kept)["open"]
    return None if place is None else (place[0], place[1])


def axes_of(engine: Engine, runs: Sequence[RunRow], nodes: Sequence[MapNode]) -> charts.Axes:
    """The axes of the trait that most of these runs are of, or of the first of several such, whose
    `nodes` these are."""
    most = Counter(r.trait for r in runs).most_common(1)
    name = most[0][0] if most else DEFAULT_TRAIT
    of_it = {run.run_id for run in runs if run.trait == name}
    known = next((trait for trait in engine.traits() if trait.name == name), None)
    return charts.Axes.of(known, [node for node in nodes if node.run_id in of_it])


def draw(engine: Engine, every: Sequence[RunRow], kept: Any) -> tuple[str, str, str, str, str]:
    """The map, what stands under it, the cards of runs that go on, the table of runs, and what the store has
    to say. `every`: the rows of all runs."""
    model = engine.info.name
    runs = [r for r in every if remembered(kept)["all"] or not r.hidden]
    ids, names = shown(runs, kept, model), {r.run_id: r.name for r in runs}
    nodes, letters = engine.runs.map(ids), view_runs.letters(every)
    axes = axes_of(engine, [r for r in runs if r.run_id in ids], nodes)
    look = charts.Look(letters, names, axes, model, opened(kept))
    figure = plot.whole(charts.moral_map(nodes, look, engine.runs.controls(ids)))
    key = view_runs.map_key(runs, ids, letters, model, axes.caption())
    titles = {t.name: t.title for t in engine.traits()}
    newest = recent(runs, ids)
    n_older, older = len(runs) - len(newest), remembered(kept)["older"]
    table = view_runs.runs_table(runs if older else newest, ids, letters, titles)
    table += view_runs.older(n_older, not older) + view_runs.hidden(every, len(every) > len(runs))
    busy = going(every)
    cards = "".join(view_runs.card(r, letters[r.run_id], last_answer(engine, r)) for r in busy)
    mine = [r for r in every if r.run_id == remembered(kept)["mine"] and r not in busy]
    cards += "".join(view_runs.ended_card(r, letters[r.run_id]) for r in mine)
    return figure, key, cards, table, view.note(engine.runs.message())


def recent(runs: Sequence[RunRow], on_map: Collection[str]) -> list[RunRow]:
    """The newest of the runs, what else is on the map or goes on, and the example. `runs`: newest first."""

    def stays(run: RunRow) -> bool:
        return run.run_id in on_map or run.status in GOING or run.is_example

    return [*runs[:MAX_ROWS], *filter(stays, runs[MAX_ROWS:])]


def going(runs: Sequence[RunRow]) -> list[RunRow]:
    """The runs that go on, those at work first."""
    found = [r for r in runs if r.status in GOING]
    return sorted(found, key=lambda r: GOING.index(r.status))[:MAX_CARDS]


def last_answer(engine: Engine, run: RunRow) -> str:
    """What the newest healed model of a run said to a fixed prompt; nothing before its first round."""
    try:
        answers = engine.runs.round(run.run_id, run.round).answers if run.round else ()
    except SettingsError:
        return ""
    return next((row["healed"] for row in answers if row.get("healed")), "")
