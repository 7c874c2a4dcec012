"""The table of runs: which are on the map, how far they are, what can be done with them."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from components import plot, view, view_runs
from components.engine import Engine
from components.watching import Memory, remembered, shown, started
from steer_heal.config import SettingsError


def build() -> tuple[gr.HTML, gr.HTML, gr.HTML]:
    """The table, a line for what an action has to say, and one for the store."""
    gr.HTML(view.heading("Runs", "tick a run to put it on the map; click its name to open its last round"))
    message = plot.buttons("", elem_id="runs-message", elem_classes="sh-slot")
    said = gr.HTML(elem_id="store-message", elem_classes="sh-slot")
    return plot.buttons(view_runs.runs_table([], (), {}, {}), elem_id="runs"), message, said


def toggled(engine: Engine, kept: Memory, *run_ids: str) -> Memory:
    """The same memory with these runs put on the map, or taken off it where all of them are there."""
    on = shown(engine.runs.rows(), kept, engine.info.name)
    if set(run_ids) <= set(on):
        return {**kept, "runs": [run for run in on if run not in run_ids]}
    return {**kept, "runs": list(dict.fromkeys([*on, *run_ids]))}


def round_of(data: dict[str, Any]) -> int:
    """The round a click names; 0, the base, when it names none."""
    text = str(data.get("round", "0"))
    return int(text) if text.isdecimal() else 0


def acting(engine: Engine) -> Callable[..., tuple[Any, str]]:
    """The handler of a click in the table: the browser sends which action and which run."""

    def act(value: Any, event: gr.EventData) -> tuple[Any, str]:
        data = event._data if isinstance(event._data, dict) else {}
        run_id, kept = str(data.get("run", "")), remembered(value)
        runs = engine.runs
        try:
            match data.get("action"):
                case "show":
                    return toggled(engine, kept, run_id), ""
                case "open":
                    row = next((row for row in runs.rows() if row.run_id == run_id), None)
                    done = row is not None and row.status in ("finished", "cancelled")
                    mine = None if done and kept["mine"] == run_id else kept["mine"]  # its card did its work
                    return {**kept, "open": [run_id, round_of(data)], "mine": mine}, ""
                case "anyway":
                    return started(kept, engine.clone(run_id, {"evaluate": {"controls": 0}})), ""
                case "all" | "older" as which:
                    return {**kept, which: not kept[which]}, ""
                case "rename":
                    runs.rename(run_id, str(data.get("said", "")))
                case "hide":
                    runs.hide(run_id, hidden=str(data.get("hidden")) != "true")
                case "delete":
                    runs.delete(run_id)
                    return gr.skip(), view_runs.undo(run_id)
                case "cancel" | "pause" | "resume" | "restore" as does:
                    getattr(runs, does)(run_id)
        except SettingsError as problem:
            return gr.skip(), view.error(str(problem))
        return gr.skip(), ""

    return act
