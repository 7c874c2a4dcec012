"""The map, and the round that a click on it opens."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import charts, plot, view, view_runs
from components.engine import Engine
from components.runs import round_of
from components.steer import INTERNAL
from components.watching import Memory, opened, remembered
from steer_heal.config import SettingsError

EMPTY_MAP = "No run is on the map: press <b>Heal</b> to start one, or tick one in the table of runs."


@dataclass(frozen=True)
class Detail:
    """The widgets of an open round: its head, all that `open_round` fills in its order, and the choice of
    completions."""

    head: gr.HTML
    outputs: list[Any]
    which: gr.Radio


def build_map() -> tuple[gr.HTML, gr.HTML]:
    """The map itself, whose click event carries a node's run, round and stage; and what stands under it."""
    gr.HTML(view.heading("Map", "where each round went: dotted is steering, an arrow what healing kept"))
    chart = plot.chart(elem_id="map", height=400, empty=EMPTY_MAP)
    return chart, plot.buttons("", elem_id="map-key")


def open_round(engine: Engine, kept: Any, which: str = "all") -> tuple[Any, ...]:
    """What the detail shows for the round the browser remembers; nothing open, and failures, say so there."""
    place, closed = opened(kept), (gr.update(visible=False), "", "", "", None, None, "")
    if place is None:
        return view_runs.EMPTY_ROUND, *closed
    try:
        detail = engine.runs.round(*place)
        rows = engine.runs.completions(*place)
    except SettingsError as problem:
        return view.error(str(problem)), *closed
    run = next((r for r in engine.runs.rows() if r.run_id == detail.run_id), None)
    return (
        view_runs.round_head(detail, run),
        gr.update(visible=True),
        view_runs.profile_bars(detail),
        view_runs.answers(detail),
        view_runs.completions(rows, which),
        plot.whole(charts.health(detail)) if detail.facts.get("path") else None,
        plot.whole(charts.losses(detail)),
        view_runs.settings(detail),
    )


def select(kept: Any, event: gr.EventData) -> Memory:
    """A click on a node opens its round."""
    data = event._data if isinstance(event._data, dict) else {}
    return {**remembered(kept), "open": [str(data.get("run_id", "")), round_of(data)]}


def build_detail(engine: Engine, kept: gr.BrowserState) -> Detail:
    """The open round: profile, what it says, what it was trained on, how training went, its settings."""
    head = plot.buttons(view_runs.EMPTY_ROUND, elem_id="round")
    with gr.Column(visible=False, elem_classes="sh-open") as body, gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Profile"):
            bars = gr.HTML(elem_id="round-bars", apply_default_css=False, padding=True)
        with gr.Tab("Movement against health"):
            empty = "This round's health was not measured at several doses of steering."
            health = plot.chart(elem_id="round-health", height=480, empty=empty)
        with gr.Tab("What it says"):
            answers = gr.HTML(elem_id="round-answers", apply_default_css=False, padding=True)
        with gr.Tab("Completions"):
            which = gr.Radio(["all", "kept", "dropped"], value="all", show_label=False, container=False)
            completions = gr.HTML(elem_id="round-completions", apply_default_css=False, padding=True)
        with gr.Tab("Training"):
            empty = "This round was not trained: it is the base, or the training was not recorded."
            losses = plot.chart(elem_id="round-losses", height=260, empty=empty)
        with gr.Tab("Beside another run"):
            other = gr.Dropdown([], label="the last round of", elem_id="compare-with")
            beside = gr.HTML(elem_id="compare", elem_classes="sh-wide", apply_default_css=False)
        with gr.Tab("Settings"):
            settings = gr.HTML(elem_id="round-settings", apply_default_css=False, padding=True)

    def filtered(value: Any, choice: str) -> str:
        place = opened(value)
        try:
            return view_runs.completions(engine.runs.completions(*place), choice) if place else ""
        except SettingsError as problem:
            return view.error(str(problem))

    def choices(value: Any) -> tuple[Any, str]:
        place, rows = opened(value), [r for r in engine.runs.rows() if not r.hidden]
        named = [(r.name or r.run_id, r.run_id) for r in rows if place and r.run_id != place[0]]
        return gr.update(choices=named, value=None), ""

    def compared(value: Any, run_id: str | None) -> str:
        place, rows = opened(value), {r.run_id: r for r in engine.runs.rows()}
        if place is None or run_id not in rows:
            return view.empty("Choose a run.")
        names = tuple(rows[r].name or r if r in rows else r for r in (place[0], run_id))
        try:
            pair = engine.runs.round(*place), engine.runs.round(run_id, rows[run_id].round)
        except SettingsError as problem:
            return view.error(str(problem))
        return view_runs.compare(*pair, (names[0], names[1]))

    head.change(choices, kept, [other, beside], **INTERNAL)
    other.input(compared, [kept, other], beside, **INTERNAL)
    which.input(filtered, [kept, which], completions, **INTERNAL)
    return Detail(head, [head, body, bars, answers, completions, health, losses, settings], which)
