"""Sweeps on the page: the form that starts one, the list of them, and the one that is open."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from components import charts_sweep, plot, view, view_sweeps
from components.engine import Engine
from components.heal import Healing, Presses
from components.runs import toggled
from components.steer import INTERNAL, LATEST
from components.watching import Memory, remembered, shown
from steer_heal.config import MAX_SWEEP_RUNS, SettingsError
from steer_heal.config.axes import Axes, parse
from steer_heal.records import RunRow


def read(text: str | None, budget: float | None) -> Axes:
    """The axes as they are typed, a line each. Errors: `SettingsError`."""
    return parse(filter(None, map(str.strip, (text or "").splitlines())), int(budget or 0))


def build_form(engine: Engine, healing: Healing, kept: gr.BrowserState) -> Any:
    """Under the form of one run, which says all that does not vary; gives the event of a sweep's start."""
    with gr.Accordion("Several runs: a sweep", open=False, elem_id="sweep-form"):
        gr.HTML(view.note("Each combination of values becomes a run; all else is as set above."))
        text = gr.Textbox(
            label="What varies, a line each",
            placeholder="train.divergence=nll,kl_rev\nseed=0..2",
            lines=3,
            max_length=4000,
            elem_id="sweep-axes",
        )
        with gr.Row(elem_classes="sh-pressed sh-tight"):
            budget = gr.Number(
                MAX_SWEEP_RUNS, label="Runs at most", precision=0, min_width=90, elem_id="sweep-budget"
            )
            begin = gr.Button("Start the sweep", min_width=120, elem_id="sweep-start")
        said = gr.HTML(elem_id="sweep-said", elem_classes="sh-slot")
    asked, pressed = list(healing.asked.values()), Presses()

    def forecast(text: str | None, budget: float | None, *values: Any) -> str:
        if not (text or "").strip():
            return ""
        try:
            told = engine.sweeps.forecast(healing.settings(*values), read(text, budget))
            return view_sweeps.takes(told, engine.sweeps.address)
        except SettingsError as problem:
            return view.note(str(problem))

    def start(
        request: gr.Request, value: Any, text: str | None, budget: float | None, *values: Any
    ) -> tuple[Any, Any]:
        session = request.session_hash or ""
        if not pressed.first(session, (text, budget, values)):
            return gr.skip(), gr.skip()
        try:
            varied = read(text, budget)
            sweep = engine.sweeps.start(healing.settings(*values), varied, budget=int(budget or 0))
        except SettingsError as problem:
            pressed.forget(session)
            return gr.skip(), view.error(str(problem))
        not_run = view_sweeps.skipped([cell.skipped for cell in sweep.cells if cell.skipped])
        begun = f'<div class="sh-note">{len(sweep.run_ids)} runs are queued.{not_run}</div>'
        return {**remembered(value), "sweep": sweep.sweep_id}, begun

    # A textbox's .input misses what is pasted with the mouse.
    told = [healing.asked[name] for name in ("rounds", "preset", "completions", "others")]
    changes = [one.change for one in (text, budget, *told)]
    gr.on(changes, forecast, [text, budget, *asked], said, **LATEST)
    return begin.click(start, [kept, text, budget, *asked], [kept, said], **INTERNAL)


def build() -> tuple[gr.HTML, gr.HTML, gr.HTML, gr.HTML]:
    """The list of sweeps, a line for what an action has to say, and of the open one table and chart."""
    listed = plot.buttons("", elem_id="sweeps")
    message = gr.HTML(elem_id="sweeps-message", elem_classes="sh-slot")
    table = gr.HTML(elem_id="sweep", apply_default_css=False)
    return listed, message, table, plot.chart(elem_id="sweep-chart", height=320, empty="")


def draw(engine: Engine, runs: Sequence[RunRow], value: Any) -> tuple[str, str, str | None]:
    """The list, and table and chart of the open sweep, which are empty where none is. `runs`: the rows of
    all runs."""
    kept = remembered(value)
    try:
        sweeps = engine.sweeps.all()
        opened = next((sweep for sweep in sweeps if sweep.sweep_id == kept["sweep"]), None)
        table = engine.sweeps.table(opened) if opened else None
    except SettingsError as problem:
        return view.error(str(problem)), "", None
    on = shown(runs, kept, engine.info.name)
    listed = view_sweeps.listed(sweeps, runs, on, opened.sweep_id if opened else None, engine.sweeps.address)
    if opened is None or table is None:
        return listed, "", None
    ids = [row["run_id"] for row in table.last]
    targets = {trait.name: trait.target for trait in engine.traits()}
    controls = charts_sweep.held_against(engine.runs.map(ids), engine.runs.controls(ids), targets)
    return listed, view_sweeps.compared(opened, table), plot.whole(charts_sweep.chart(table, controls))


def acting(engine: Engine) -> Callable[..., tuple[Any, str]]:
    """The handler of a click in the list."""

    def act(value: Any, event: gr.EventData) -> tuple[Any, str]:
        data = event._data if isinstance(event._data, dict) else {}
        kept: Memory = remembered(value)
        try:
            sweep = engine.sweeps.find(str(data.get("run", "")))
            match data.get("action"):
                case "open-sweep":
                    return {**kept, "sweep": None if kept["sweep"] == sweep.sweep_id else sweep.sweep_id}, ""
                case "show-sweep":
                    here = {run.run_id for run in engine.runs.rows()}.intersection(sweep.run_ids)
                    return toggled(engine, kept, *sorted(here)), ""
                case "stop-sweep":
                    engine.sweeps.stop(sweep)
                case "resume-sweep":
                    engine.sweeps.resume(sweep)
        except SettingsError as problem:
            return gr.skip(), view.error(str(problem))
        return gr.skip(), ""

    return act
