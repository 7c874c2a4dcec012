"""Dose against effect: where the model breaks, and alpha x layer; a click steers there."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import charts_dose, plot, view, view_dose, view_effect
from components.answering import Newest, nothing
from components.controls import FORM, sample
from components.engine import Engine
from components.steer import INTERNAL, Steering
from steer_heal.config import DoseRequest, SettingsError, build, decided_method
from steer_heal.records import DoseRow, Sweep, Vignette

LOG = logging.getLogger(__name__)
LONG: dict[str, Any] = {**INTERNAL, "trigger_mode": "multiple", "concurrency_limit": None}
SWEEP_ALPHAS = (-4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
GRID_ALPHAS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
MAX_TOKENS = 40
IN_VIEW = "the vignette in view"
SETS = {IN_VIEW: 0, "7 vignettes": 1, "14 vignettes": 2}
ROW_PIXELS = 16
Outputs = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """A press: the form of the steering panel, whose it is and which press it was."""

    form: dict[str, Any]
    over: str
    session: str
    number: int


@dataclass(frozen=True)
class Panel:
    """What the handlers need: the engine, and which press of a session is the newest."""

    engine: Engine
    newest: Newest = field(default_factory=Newest)
    presses: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def request(self, asked: Asked, alphas: tuple[float, ...], *, refine: bool) -> DoseRequest:
        """The sweep of these alphas over what was chosen. Errors: `SettingsError`."""
        form, each = asked.form, SETS.get(asked.over, 0)
        prompts = (form["prompt"],) if each == 0 else chosen(self.engine.vignettes(), each)
        if not prompts[0].strip():
            raise SettingsError("the prompt is empty: choose a vignette, or a set of them.")
        return build(
            DoseRequest, trait=form["trait"], alphas=alphas, band=(form["low"], form["high"]),
            prompts=prompts, sample=sample(form, MAX_TOKENS), refine=refine, method=form["method"],
        )  # fmt: skip

    def target(self, trait: str) -> dict[str, int]:
        return next((dict(t.target) for t in self.engine.traits() if t.name == trait), {})

    def known_as(self, trait: str, low: float, high: float, method: str) -> str:
        model = self.engine.info.name
        return view_dose.key(model, trait, low, high, decided_method(method, model))


def chosen(vignettes: list[Vignette], each: int) -> tuple[str, ...]:
    """The texts of the first `each` vignettes of every foundation."""
    names = dict.fromkeys(v.foundation for v in vignettes)
    return tuple(v.text for name in names for v in [v for v in vignettes if v.foundation == name][:each])


def work_of(session: str) -> str:
    """The session's name for long work, so that the answers' Stop does not end it."""
    return f"{session} long"


def sweeping(panel: Panel) -> Callable[..., Iterator[Outputs]]:
    """The handler that streams a sweep into (chart, note, strip, what is known)."""

    def stream(asked: Asked, known: Any) -> Iterator[Outputs]:
        request = panel.request(asked, SWEEP_ALPHAS, refine=True)
        target = panel.target(request.trait)
        name = panel.known_as(request.trait, *request.band, request.method)
        yield gr.skip(), view_dose.working(0.0, "measuring the base"), gr.skip(), gr.skip()
        found, shown = Sweep(0.0, []), 0
        for found in panel.engine.dose(request, session=work_of(asked.session)):
            n = len(found.rows)
            doing = f"{n} doses measured" if n else "measuring base, then all doses together"
            doing += ", closing in on where it breaks" if n >= len(SWEEP_ALPHAS) else ""
            drawn = plot.whole(charts_dose.dose(found, target)) if n > shown else gr.skip()
            shown = n
            yield drawn, view_dose.working(found.share, doing, found.waiting), gr.skip(), gr.skip()
        if found.controls is not None:
            yield plot.whole(charts_dose.dose(found, target)), gr.skip(), gr.skip(), gr.skip()
        if not found.rows:
            yield gr.skip(), view.note("Stopped before the first dose."), gr.skip(), gr.skip()
            return
        kept = view_dose.remember(known, name, found.rows)
        said = (
            view_dose.found(found, target)
            if found.share >= 1.0
            else f"Stopped: {len(found.rows)} doses measured."
        )
        yield gr.skip(), view.note(said), view_dose.strip(kept, name), kept

    def handler(request: gr.Request, over: str, known: Any, *form: Any) -> Iterator[Outputs]:
        yield from _guarded(panel, over, form, request, lambda asked: stream(asked, known), 4)

    return handler


def mapping(panel: Panel) -> Callable[..., Iterator[Outputs]]:
    """The handler that streams a grid into (heat map, note)."""

    def stream(asked: Asked) -> Iterator[Outputs]:
        request = panel.request(asked, GRID_ALPHAS, refine=False)
        yield gr.skip(), view_dose.working(0.0, "measuring the base")
        found, shown = Sweep(0.0, []), 0
        for found in panel.engine.grid(request, session=work_of(asked.session)):
            whole = len(found.rows) - shown >= len(GRID_ALPHAS)
            shown = len(found.rows) if whole else shown
            drawn = plot.whole(charts_dose.grid(found.rows, panel.engine.layers)) if whole else gr.skip()
            yield drawn, view_dose.working(found.share, _cells(found.rows), found.waiting)
        rest = len(found.rows) > shown
        drawn = plot.whole(charts_dose.grid(found.rows, panel.engine.layers)) if rest else gr.skip()
        said = "" if found.share >= 1.0 else "Stopped: "
        yield drawn, view.note(f"{said}{_cells(found.rows)}. Click a cell to steer there.")

    def handler(request: gr.Request, over: str, *form: Any) -> Iterator[Outputs]:
        yield from _guarded(panel, over, form, request, stream, 2)

    return handler


def effecting(panel: Panel) -> Callable[..., Iterator[Outputs]]:
    """The handler that streams what the vector does into (panel, note)."""

    def stream(asked: Asked) -> Iterator[Outputs]:
        request, news = panel.request(asked, (1.0,), refine=False), ""
        for news in panel.engine.effect(request, session=work_of(asked.session)):
            if isinstance(news, str):
                yield gr.skip(), view.note(f"Measuring {news} ...")
            else:
                yield view_effect.panel(news), view.note("At alpha 1, over our own vignettes.")
        if isinstance(news, str):
            yield gr.skip(), view.note("Stopped before it was measured.")

    def handler(request: gr.Request, over: str, *form: Any) -> Iterator[Outputs]:
        yield from _guarded(panel, over, form, request, stream, 2)

    return handler


def _cells(cells: list[DoseRow]) -> str:
    bands = len({cell.band for cell in cells})
    words = "choice" if bands == 1 else "choices"
    return f"{len(cells)} cells measured, {bands} {words} of layers" if cells else "measuring the base"


def _guarded(
    panel: Panel,
    over: str,
    form: tuple[Any, ...],
    request: gr.Request,
    stream: Callable[[Asked], Iterator[Outputs]],
    n: int,
) -> Iterator[Outputs]:
    """The stream while its press is the session's newest; what goes wrong is said in the note."""
    session = request.session_hash or ""
    asked = Asked(dict(zip(FORM, form, strict=True)), over, session, next(panel.presses))
    panel.newest.take(session, asked.number)

    rest = nothing(n - 2)
    try:
        for shown in stream(asked):
            if not panel.newest.holds(session, asked.number):
                break
            yield shown
    except SettingsError as problem:
        yield gr.skip(), view.error(str(problem)), *rest
    except Exception:
        LOG.exception("measuring doses failed")
        yield gr.skip(), view.error(view.BROKE), *rest
    yield nothing(n)


def steer_to(event: gr.EventData) -> Outputs:
    """A click on a chart: updates of slider, exact alpha and the band's ends."""
    data = event._data if isinstance(event._data, dict) else {}
    alpha, low, high = (data.get(name) for name in ("alpha", "low", "high"))
    if not isinstance(alpha, int | float):
        return nothing(4)
    band = (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else nothing(2)
    return max(-4.0, min(4.0, alpha)), alpha, *band


def make(engine: Engine, steering: Steering) -> Callable[[gr.Blocks], Any]:
    """Make the panel and wire it; what is returned is called once with the page."""
    knobs, panel = steering.knobs, Panel(engine)
    about = "where it breaks, and which layers do it; trait, band, method and prompt as above"
    gr.HTML(view.heading("Dose", about))
    with gr.Row(equal_height=False, elem_classes="sh-pressed"):
        over = gr.Dropdown(
            list(SETS), value=IN_VIEW, label="over", scale=2, min_width=190, elem_id="dose-over"
        )
        find = gr.Button("Find the incoherent regime", size="sm", scale=2, min_width=170, elem_id="dose-find")
        every = gr.Button("Map alpha × layer", size="sm", scale=1, min_width=130, elem_id="dose-grid")
        what = gr.Button("What the vector does", size="sm", scale=1, min_width=150, elem_id="dose-effect")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=90, elem_id="dose-stop")
    note = gr.HTML(elem_id="dose-note", elem_classes="sh-slot", apply_default_css=False)
    does = gr.HTML(elem_id="effect", apply_default_css=False)
    with gr.Row(elem_classes="sh-wrap"):
        with gr.Column(min_width=330):
            chart = plot.chart(None, elem_id="dose-chart", height=720, empty="")
        with gr.Column(min_width=330):
            height = 130 + ROW_PIXELS * (2 * engine.info.n_layers - 2)
            cells = plot.chart(None, elem_id="dose-map", height=max(480, min(900, height)), empty="")
    known = gr.BrowserState({}, storage_key="steer-heal-doses", secret="verdicts-only")

    find.click(sweeping(panel), [over, known, *knobs.form()], [chart, note, knobs.strip, known], **LONG)
    what.click(effecting(panel), [over, *knobs.form()], [does, note], **LONG)
    every.click(mapping(panel), [over, *knobs.form()], [cells, note], **LONG)

    def halt(request: gr.Request) -> None:
        engine.stop(work_of(request.session_hash or ""))

    def leave(request: gr.Request) -> None:
        engine.stop(work_of(request.session_hash or ""))
        panel.newest.forget(request.session_hash or "")

    stop.click(halt, None, None, queue=False, **INTERNAL)
    steered = [knobs.slider, knobs.exact, knobs.low, knobs.high]
    for figure in (chart, cells):
        steering.restart(figure.click(steer_to, None, steered, **INTERNAL).then)
    about_dose = [knobs.trait, knobs.low, knobs.high, knobs.method]

    def recolour(value: Any, trait: str, low: float, high: float, method: str) -> str:
        return view_dose.strip(view_dose.remembered(value), panel.known_as(trait, low, high, method))

    inputs = [known, *about_dose]
    gr.on([widget.change for widget in about_dose], recolour, inputs, knobs.strip, **INTERNAL)

    def on_load(page: gr.Blocks) -> None:
        page.load(recolour, inputs, knobs.strip, **INTERNAL)
        page.unload(leave)

    return on_load
