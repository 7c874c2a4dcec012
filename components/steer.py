"""The steering panel: a vignette, a trait, a dose; base and steered side by side as they are written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import view
from components.answering import STAMP, TYPING_PAUSE, Newest, answering
from steer_heal.config import DEFAULT_BAND, DEFAULT_TRAIT, SettingsError
from steer_heal.records import Vignette

INTERNAL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
STREAM: dict[str, Any] = {**INTERNAL, "trigger_mode": "multiple", "concurrency_limit": None, "js": STAMP}


@dataclass(frozen=True)
class Steering:
    """What other panels use: the trait and band in view, and what answers on the first visit."""

    trait: gr.Dropdown
    low: gr.Slider
    high: gr.Slider
    on_load: Callable[[gr.Blocks], Any]


def by_foundation(vignettes: list[Vignette], foundation: str) -> list[tuple[str, str]]:
    """The chooser's entries: the text, shortened, and the vignette's id."""
    return [
        (v.text if len(v.text) <= 110 else v.text[:107] + "...", v.id)
        for v in vignettes
        if v.foundation == foundation
    ]


def _chooser(vignettes: list[Vignette]) -> tuple[gr.Dropdown, gr.Dropdown, gr.Textbox]:
    foundations = list(dict.fromkeys(v.foundation for v in vignettes))
    first = vignettes[0]
    with gr.Row():
        foundation = gr.Dropdown(
            foundations,
            value=first.foundation,
            label="Foundation",
            scale=1,
            min_width=130,
            elem_id="foundation",
        )
        vignette = gr.Dropdown(
            by_foundation(vignettes, first.foundation),
            value=first.id,
            label="Vignette",
            scale=4,
            min_width=240,
            elem_id="vignette",
        )
    prompt = gr.Textbox(
        first.text,
        label="What the model is told: edit it, or write your own",
        lines=2,
        max_lines=6,
        elem_id="prompt",
    )
    return foundation, vignette, prompt


def _dose(engine: Any) -> tuple[gr.Dropdown, gr.Slider, gr.Number, gr.Slider, gr.Slider, gr.HTML]:
    traits = [(t.title, t.name) for t in engine.traits()]
    with gr.Row(equal_height=True):
        trait = gr.Dropdown(
            traits, value=DEFAULT_TRAIT, label="Trait", scale=2, min_width=170, elem_id="trait"
        )
        slider = gr.Slider(
            -4,
            4,
            value=1.0,
            step=0.05,
            label="alpha: dose in units of c* (0 is base, 1 is one nat)",
            scale=4,
            min_width=240,
            elem_id="alpha",
            buttons=[],
        )
        exact = gr.Number(1.0, label="exact alpha", scale=1, min_width=100, elem_id="alpha-exact")
    with gr.Row(elem_classes="sh-wrap"):
        low = gr.Slider(
            0, 1, DEFAULT_BAND[0], step=0.05, label="band from", min_width=150, buttons=[], elem_id="low"
        )
        high = gr.Slider(
            0, 1, DEFAULT_BAND[1], step=0.05, label="band to", min_width=150, buttons=[], elem_id="high"
        )
        layers = gr.HTML(say_layers(engine, *DEFAULT_BAND), elem_id="layers")
    return trait, slider, exact, low, high, layers


def say_layers(engine: Any, low: float, high: float) -> str:
    """Which layers the band means, or why it means none."""
    try:
        found = engine.layers((low, high))
    except (SettingsError, ValueError) as problem:
        return view.error(str(problem))
    span = f"layer {found[0]}" if len(found) == 1 else f"layers {found[0]} to {found[-1]}"
    return view.note(f"shares of depth: {span} of 0 to {engine.info.n_layers - 1}")


def _answers() -> tuple[gr.HTML, gr.Button, gr.HTML, gr.HTML, gr.HTML, gr.HTML]:
    with gr.Row(equal_height=True):
        status = gr.HTML(view.note("starting"), elem_id="status")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=90, elem_id="stop")
    with gr.Row(elem_classes="sh-wrap"):
        panes = []
        for stage in ("base", "steered"):
            title = f'<div class="sh-answer-title sh-fg-{stage}">{view.STAGE_WORDS[stage]}</div>'
            box = f'<div class="sh-answer sh-answer-{stage}" id="{stage}-text" tabindex="0">${{value}}</div>'
            panes.append(
                gr.HTML(
                    view.answer((), done=False),
                    html_template=title + box,
                    js_on_load=None,
                    apply_default_css=False,
                    elem_id=f"{stage}-pane",
                )
            )
    gr.HTML(view.legend(), apply_default_css=False)
    with gr.Row(elem_classes="sh-wrap"):
        verdict = gr.HTML(elem_id="verdict", apply_default_css=False)
        bars = gr.HTML(view.bars({}), elem_id="bars", apply_default_css=False)
    return status, stop, panes[0], panes[1], verdict, bars


def build(engine: Any) -> Steering:
    """Make the panel and wire it: every control starts the answer again with the new value."""
    newest, pool = Newest(), ThreadPoolExecutor(4, thread_name_prefix="profile")
    vignettes = engine.vignettes()
    known = {v.id: v for v in vignettes}
    gr.HTML(
        view.heading("Steer", "the same question, without and with the vector; what differs is the steering")
    )
    foundation, vignette, prompt = _chooser(vignettes)
    trait, slider, exact, low, high, layers = _dose(engine)
    with gr.Accordion("How the answer is drawn", open=False), gr.Row():
        length = gr.Slider(8, 256, 60, step=4, label="at most this many tokens", buttons=[], elem_id="length")
        seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=100, elem_id="seed")
        greedy = gr.Checkbox(False, label="greedy (always the likeliest token)", elem_id="greedy")
    status, stop, base, steered, verdict, bars = _answers()
    stamp = gr.Number(visible="hidden")

    outputs = [base, steered, status, verdict, bars]
    stream = answering(engine, newest, pool)

    def inputs(alpha: Any) -> list[Any]:
        return [prompt, trait, alpha, low, high, length, seed, greedy, stamp]

    slider.input(None, slider, exact, js="(v) => v", **INTERNAL)
    exact.input(None, exact, slider, js="(v) => Math.max(-4, Math.min(4, v ?? 0))", **INTERNAL)
    slider.input(stream, inputs(slider), outputs, **STREAM)
    typed = answering(engine, newest, pool, TYPING_PAUSE)
    # A textbox's .input misses what is pasted with the mouse; .change also hears a vignette being chosen.
    gr.on([exact.input, prompt.change, seed.input], typed, inputs(exact), outputs, **STREAM)
    gr.on(
        [trait.input, low.input, high.input, length.input, greedy.input, prompt.submit],
        stream,
        inputs(exact),
        outputs,
        **STREAM,
    )
    gr.on([low.change, high.change], lambda a, b: say_layers(engine, a, b), [low, high], layers, **INTERNAL)

    def choose(name: str) -> tuple[Any, str]:
        found = [v for v in vignettes if v.foundation == name] or vignettes
        return gr.update(choices=by_foundation(vignettes, found[0].foundation), value=found[0].id), found[
            0
        ].text

    foundation.input(choose, foundation, [vignette, prompt], **INTERNAL)
    vignette.input(lambda chosen: known[chosen].text, vignette, prompt, **INTERNAL)

    def halt(request: gr.Request) -> None:
        engine.stop(request.session_hash or "")

    stop.click(halt, None, None, queue=False, **INTERNAL)

    def leave(request: gr.Request) -> None:
        engine.stop(request.session_hash or "")
        newest.forget(request.session_hash or "")

    def on_load(blocks: gr.Blocks) -> None:
        blocks.load(stream, inputs(exact), outputs, **STREAM)
        blocks.unload(leave)

    return Steering(trait, low, high, on_load)
