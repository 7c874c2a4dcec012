"""Dose against effect: where the model breaks, and alpha x layer; a click steers there."""

import itertools
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from components import charts_dose, plot, view, view_dose, view_effect
from components.answering import Newest, nothing
from components.controls import band, ends, filled, sample, span
from components.engine import Engine
from components.steer import INTERNAL, Steering
from steer_heal.config import (
    EVERYWHERE,
    DoseRequest,
    SettingsError,
    build,
    decided_method,
    gate_in_words,
    read_mix,
)
from steer_heal.records import DoseRow, Sweep, Trait, Vignette

LOG = logging.getLogger(__name__)
LONG: dict[str, Any] = {**INTERNAL, "trigger_mode": "multiple", "concurrency_limit": None}
SWEEP_ALPHAS = (-4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
GRID_ALPHAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
MAX_TOKENS = 40
IN_VIEW = "this prompt"
SETS = {IN_VIEW: 0, "7 vignettes": 1, "14 vignettes": 2}
ROW_PIXELS = 16
SHOWN_CHARS = 30
"""Of a prompt in a chart's title, which fits on a phone."""
EMPTY_EFFECT = "Press <b>What the vector does</b>: all that is measured beside random directions."
Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """A press: the form of the steering panel, over what is measured, what is known, and whose it is."""

    form: dict[str, Any]
    over: str
    known: Any
    session: str


@dataclass(frozen=True)
class Panel:
    """What streams the answers to presses, and which press of a session is the newest."""

    engine: Engine
    newest: Newest = field(default_factory=Newest)
    presses: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def handler(
        self, stream: Callable[[Asked], Iterator[Outputs]], n: int
    ) -> Callable[..., Iterator[Outputs]]:
        """The handler of a press that streams its `n` outputs, of which the last may be left out, while it is
        the session's newest; what goes wrong is said in the note, which is the second of them."""

        def handle(request: gr.Request, over: str, known: Any, *form: Any) -> Iterator[Outputs]:
            session, number = request.session_hash or "", next(self.presses)
            self.newest.take(session, number)
            try:
                for shown in stream(Asked(filled(self.engine, form), over, known, session)):
                    if not self.newest.holds(session, number):
                        break
                    yield *shown, *nothing(n - len(shown))
            except SettingsError as problem:
                yield gr.skip(), view.error(str(problem)), *nothing(n - 2)
            except Exception:
                LOG.exception("measuring doses failed")
                yield gr.skip(), view.error(view.BROKE), *nothing(n - 2)
            yield nothing(n)

        return handle

    def made(self, asked: Asked) -> Iterator[Outputs]:
        """Streams what is measured of a trait that was just made into (chart, note, strip, what is known,
        heat map): a sweep, and if that is not stopped a grid, coarsely; the note of both stays."""
        swept = yield from self.sweep(asked)
        if swept:
            for cells, note in self.grid(asked, coarse=True):
                yield gr.skip(), f"{swept}{note}", gr.skip(), gr.skip(), cells

    def sweep(self, asked: Asked) -> Generator[Outputs, None, str]:
        """Streams a sweep into (chart, note, strip, what is known); gives its note where it is whole."""
        request = self.request(asked, SWEEP_ALPHAS, refine=True)
        trait = self.trait(request.trait)
        target = trait.target if trait else {}
        prompt = "" if SETS.get(asked.over, 0) else asked.form["prompt"]
        name = self.known_as(added(request), request.band, request.method, prompt)
        about = self.subject(request, asked.over)
        yield gr.skip(), view_dose.working(0.0, "measuring the base"), gr.skip(), gr.skip()
        found, shown = Sweep(0.0, []), 0
        for found in self.engine.dose(request, session=work_of(asked.session)):
            n = len(found.rows)
            doing = f"{n} doses measured" if n else "measuring base, then all doses together"
            doing += ", closing in on where it breaks" if n >= len(SWEEP_ALPHAS) else ""
            drawn = plot.whole(charts_dose.dose(found, target), about) if n > shown else gr.skip()
            shown = n
            yield drawn, view_dose.working(found.share, doing, found.waiting), gr.skip(), gr.skip()
        if not found.rows:
            yield gr.skip(), view.note("Stopped before the first dose."), gr.skip(), gr.skip()
            return ""
        held = found.controls is not None
        drawn = plot.whole(charts_dose.dose(found, target), about) if held else gr.skip()
        kept = view_dose.remember(asked.known, name, found.rows)
        whole = found.share >= 1.0
        said = view_dose.found(found, target) if whole else f"Stopped: {len(found.rows)} doses measured."
        note = view.note(f"{about}: {said}{gated(request)}")
        yield drawn, note, view_dose.strip(kept, name), kept
        return note if whole else ""

    def grid(self, asked: Asked, *, coarse: bool = False) -> Iterator[Outputs]:
        """Streams a grid into (heat map, note)."""
        request = self.request(asked, GRID_ALPHAS, coarse=coarse)
        about = self.subject(request, asked.over, layers=False)
        yield gr.skip(), view_dose.working(0.0, "measuring the base")
        found, shown = Sweep(0.0, []), 0

        def drawn() -> str:
            return plot.whole(charts_dose.grid(found.rows, self.engine.layers), about)

        for found in self.engine.grid(request, session=work_of(asked.session)):
            whole = len(found.rows) - shown >= len(GRID_ALPHAS)
            shown = len(found.rows) if whole else shown
            figure = drawn() if whole else gr.skip()
            yield figure, view_dose.working(found.share, _cells(found.rows), found.waiting)
        said = "" if found.share >= 1.0 else "Stopped: "
        best = view_dose.layers_found(found.rows, self.engine.layers)
        said += f"{_cells(found.rows)}. {best}Click a cell to steer there.{gated(request)}"
        said += (
            " These are three layers together; Find which layers takes each alone as well." if coarse else ""
        )
        yield drawn() if len(found.rows) > shown else gr.skip(), view.note(f"{about}: {said}")

    def effect(self, asked: Asked) -> Iterator[Outputs]:
        """Streams what the vector does into (panel, note)."""
        request, news = self.request(asked, (1.0,)), ""
        for news in self.engine.effect(request, session=work_of(asked.session)):
            if isinstance(news, str):
                yield gr.skip(), view.note(f"Measuring {news} ...")
            else:
                of = self.subject(request, "our own vignettes")
                said = f"At the dose of one nat, with every token steered, over {of}."
                yield view_effect.panel(news), view.note(said)
        if isinstance(news, str):
            yield gr.skip(), view.note("Stopped before it was measured.")

    def steer_to(self, event: gr.EventData) -> Outputs:
        """A click on a chart: updates of slider, exact alpha, and the first and the last layer."""
        data = event._data if isinstance(event._data, dict) else {}
        alpha, low, high = data.get("alpha"), data.get("low"), data.get("high")
        if not isinstance(alpha, int | float):
            return nothing(4)
        layers = nothing(2)
        if isinstance(low, int | float) and isinstance(high, int | float):
            layers = ends(self.engine, (low, high))
        return max(-4.0, min(4.0, alpha)), alpha, *layers

    def request(self, asked: Asked, alphas: tuple[float, ...], **how: bool) -> DoseRequest:
        """The sweep of these alphas over what was chosen; `how`: `refine` or `coarse`. Errors:
        `SettingsError`."""
        form, each = asked.form, SETS.get(asked.over, 0)
        prompts = (form["prompt"],) if each == 0 else chosen(self.engine.vignettes(), each)
        if not prompts[0].strip():
            raise SettingsError("the prompt is empty: choose a vignette, or a set of them.")
        return build(
            DoseRequest, trait=form["trait"], alphas=alphas, band=form["band"],
            prompts=prompts, sample=sample(form, MAX_TOKENS), method=form["method"],
            where=form["where"], mix=form["mix"] or "", **how,
        )  # fmt: skip

    def subject(self, request: DoseRequest, over: str, *, layers: bool = True) -> str:
        """What is measured, which stays true when the form changes afterwards."""
        prompt = request.prompts[0]
        shown = prompt if len(prompt) <= SHOWN_CHARS else f"{prompt[:SHOWN_CHARS].rstrip()} ..."
        of = f"“{shown}”" if over == IN_VIEW else over
        trait = self.trait(request.trait)
        title = request.mix or (trait.title if trait else "")
        held = self.engine.layers(request.band)
        return ", ".join([of, *([span(held[0], held[-1])] if layers else []), title])

    def trait(self, name: str) -> Trait | None:
        return next((trait for trait in self.engine.traits() if trait.name == name), None)

    def known_as(self, trait: str, band: tuple[float, float], method: str, prompt: str = "") -> str:
        """What a sweep over the prompt is remembered by, or without one a sweep over a set."""
        model = self.engine.info.name
        return view_dose.key(model, trait, *band, decided_method(method, model), prompt)


def chosen(vignettes: list[Vignette], each: int) -> tuple[str, ...]:
    """The texts of the first `each` vignettes of every foundation."""
    names = dict.fromkeys(v.foundation for v in vignettes)
    return tuple(v.text for name in names for v in [v for v in vignettes if v.foundation == name][:each])


def added(request: DoseRequest) -> str:
    """What is added, and where, as a sweep is remembered by it."""
    if request.mix:
        return str(replace(read_mix(request.mix), where=request.gate))
    return request.trait if request.gate == EVERYWHERE else f"{request.trait} @{request.gate}"


def work_of(session: str) -> str:
    """The session's name for long work, so that the answers' Stop does not end it."""
    return f"{session} long"


def gated(request: DoseRequest) -> str:
    """What is measured how, where not every token is steered."""
    if request.gate == EVERYWHERE:
        return ""
    words = gate_in_words(request.gate)
    return f" Of the texts was steered: {words}; the trait's movement is measured {view.UNGATED}."


def _cells(cells: list[DoseRow]) -> str:
    bands = len({cell.band for cell in cells})
    words = "choice" if bands == 1 else "choices"
    return f"{len(cells)} cells measured, {bands} {words} of layers" if cells else "measuring the base"


def make(engine: Engine, steering: Steering) -> Callable[[gr.Blocks], Any]:
    """Make the panel and wire it; what is returned is called once with the page."""
    knobs, panel = steering.knobs, Panel(engine)
    about = "where it breaks, and which layers do it; trait, layers and prompt as above"
    gr.HTML(view.heading("Dose", about))
    with gr.Row(equal_height=False, elem_classes="sh-pressed sh-tight"):
        over = gr.Dropdown(
            list(SETS), value=IN_VIEW, label="over", scale=2, min_width=140, elem_id="dose-over"
        )
        find = gr.Button("Find where it breaks", size="sm", scale=2, min_width=130, elem_id="dose-find")
        every = gr.Button("Find which layers", size="sm", scale=1, min_width=120, elem_id="dose-grid")
        what = gr.Button("What the vector does", size="sm", scale=1, min_width=130, elem_id="dose-effect")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=60, elem_id="dose-stop")
    note = gr.HTML(elem_id="dose-note", elem_classes="sh-slot", apply_default_css=False)
    with gr.Tabs(elem_id="dose-tabs", overflow_behavior="wrap") as tabs:
        with gr.Tab("This answer", id="answer"), gr.Row(elem_classes="sh-wrap"):
            for reading in steering.readings:
                reading.render()
        with gr.Tab("Where it breaks", id="dose-find"):
            empty = "Press <b>Find where it breaks</b>: text health and trait at a row of doses."
            chart = plot.chart(elem_id="dose-chart", height=680, empty=empty)
        with gr.Tab("Which layers", id="dose-grid"):
            height = 130 + ROW_PIXELS * (2 * engine.info.n_layers - 2)
            empty = "Press <b>Find which layers</b>: the same, for every layer and every three neighbours."
            cells = plot.chart(elem_id="dose-map", height=max(480, min(900, height)), empty=empty)
        with gr.Tab("The vector", id="dose-effect"):
            does = gr.HTML(view.empty(EMPTY_EFFECT), elem_id="effect", apply_default_css=False)
    known = gr.BrowserState({}, storage_key="steer-heal-doses", secret="verdicts-only")

    for button in (find, every, what):
        turn = button.click(lambda tab=button.elem_id: gr.update(selected=tab), None, tabs, **INTERNAL)
        turn.then(None, js="() => SteerHeal.reveal('dose-tabs')", **INTERNAL)
    asked, found = [over, known, *knobs.form()], [chart, note, knobs.strip, known]
    find.click(panel.handler(panel.sweep, 4), asked, found, **LONG)
    steering.fresh.change(panel.handler(panel.made, 5), asked, [*found, cells], **LONG)
    what.click(panel.handler(panel.effect, 2), asked, [does, note], **LONG)
    every.click(panel.handler(panel.grid, 2), asked, [cells, note], **LONG)

    def halt(request: gr.Request) -> None:
        engine.stop(work_of(request.session_hash or ""))

    def leave(request: gr.Request) -> None:
        engine.stop(work_of(request.session_hash or ""))
        panel.newest.forget(request.session_hash or "")

    stop.click(halt, None, None, queue=False, **INTERNAL)

    steered = [knobs.slider, knobs.exact, knobs.low, knobs.high]
    for figure in (chart, cells):
        clicked = figure.click(panel.steer_to, None, steered, **INTERNAL)
        steering.say(clicked.then)
        steering.restart(clicked.then)
    about_dose = [knobs.trait, knobs.where, knobs.mix, knobs.low, knobs.high, knobs.method, knobs.prompt]

    def recolour(value: Any, trait: str, where: str, mix: str, low: Any, high: Any, *rest: str) -> Any:
        if low is None or high is None:
            return gr.skip()
        method, prompt = rest
        with suppress(SettingsError):  # while it is being typed
            trait = added(build(DoseRequest, trait=trait, where=where, mix=mix or ""))
        known, about = view_dose.remembered(value), (trait, band(engine, low, high), method)
        of_prompt, of_sets = panel.known_as(*about, prompt), panel.known_as(*about)
        return view_dose.strip(known, of_prompt if of_prompt in known else of_sets)

    inputs = [known, *about_dose]
    changes = [w.change for w in (knobs.layers, *about_dose) if w not in (knobs.low, knobs.high)]
    gr.on(changes, recolour, inputs, knobs.strip, **INTERNAL)

    def on_load(page: gr.Blocks) -> None:
        page.load(recolour, inputs, knobs.strip, **INTERNAL)
        page.unload(leave)

    return on_load
