"""The steering panel: a vignette, a trait, a dose; base and steered side by side as they are written."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import address, plot, view
from components.answering import STAMP, STEP_S, TYPING_PAUSE, Newest, answering, nothing
from components.controls import (
    FORM,
    Controls,
    by_foundation,
    composed,
    controls,
    in_lines,
    layers_of,
    measured,
    methods,
    of_lines,
    offer,
    own_sampling,
    recall,
    say_layers,
    spread,
    traits,
)
from components.engine import Engine
from components.following import followed
from steer_heal.config import SettingsError
from steer_heal.records import Trait

INTERNAL: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "show_progress_on": []}
"""With a place for progress, also a hidden one, the browser copies every output of the page at each frame."""
PRESS: dict[str, Any] = {**INTERNAL, "trigger_mode": "multiple"}
"""For buttons of a table: gradio's default drops a press while the one before is being answered."""
LATEST: dict[str, Any] = {**INTERNAL, "trigger_mode": "always_last"}
"""For what draws the state: asked for while another is drawn, it comes after it and is not dropped."""
STREAM: dict[str, Any] = {**INTERNAL, "trigger_mode": "multiple", "concurrency_limit": None, "js": STAMP}


Handler = Callable[..., Iterator[Any]]

START_DOSE = 0.5
"""Of a vector that is put into a mix: two of them come to about what one does at c*."""
STARTING = "Loading the model, then writing a first answer: seconds, the first time up to a minute."


@dataclass(frozen=True)
class Steering:
    """What other panels use: the controls, and what makes one more listener offer the loaded model's
    vignettes and show how it is sampled, start an answer, or say which layers are steered after something
    else than a hand has set them. `readings`, of the answer in view, are not yet on the page: the dose panel
    has their place. `fresh` changes when a trait was made."""

    knobs: Controls
    readings: tuple[gr.HTML, gr.HTML]
    on_load: Callable[[gr.Blocks], Any]
    draw: Callable[..., Any]
    restart: Callable[..., Any]
    say: Callable[..., Any]
    fresh: gr.State


def _answers() -> tuple[gr.HTML, gr.Button, gr.HTML, gr.HTML]:
    with gr.Row(equal_height=True, elem_classes="sh-status-row"):
        status = gr.HTML(view.note(STARTING), elem_id="status")
        stop = gr.Button("Stop", size="sm", scale=0, min_width=90, elem_id="stop")
    with gr.Row(elem_classes="sh-wrap sh-answers"):
        panes = []
        for stage in ("base", "steered"):
            title = f'<div class="sh-answer-title sh-fg-{stage}">{view.STAGE_WORDS[stage]}</div>'
            look = f'class="sh-answer sh-answer-{stage}" id="{stage}-text"'
            box = f'<div {look} tabindex="0" dir="auto">${{value}}</div>'
            panes.append(
                gr.HTML(
                    view.answer((), done=False),
                    html_template=title + box,
                    js_on_load=None,
                    apply_default_css=False,
                    elem_id=f"{stage}-pane",
                )
            )
    with gr.Row(elem_classes="sh-beside sh-shading"):
        gr.HTML(view.legend(), apply_default_css=False)
        shading = gr.Radio(
            [("KL to base", "kl"), ("the trait", "trait")], value="kl", label="Shade by", container=False,
            elem_id="shading",
        )  # fmt: skip
    shading.input(None, shading, js="(by) => SteerHeal.shade(by)", **INTERNAL)
    return status, stop, panes[0], panes[1]


def build(engine: Engine) -> Steering:
    """Make the panel and wire it: every control starts the answer again with the new value."""
    knobs = controls(engine)
    status, stop, base, steered = _answers()
    measures = gr.HTML(elem_id="measures", apply_default_css=False, render=False)
    bars = gr.HTML(view.bars({}), elem_id="bars", apply_default_css=False, render=False)
    kept = gr.BrowserState({}, storage_key="steer-heal-form", secret="what-was-typed")
    newest = Newest()
    outputs = [base, steered, status, knobs.dose, knobs.verdict, measures, bars]
    start = _wire_answers(engine, knobs, newest, outputs)
    say = _wire_choosers(engine, knobs)

    def halt(stamp: float, request: gr.Request) -> None:
        newest.halt(request.session_hash or "", stamp)
        engine.stop(request.session_hash or "")

    def leave(request: gr.Request) -> None:
        engine.stop(request.session_hash or "")
        newest.forget(request.session_hash or "")

    stop.click(halt, knobs.stamp, None, queue=False, js=STAMP, **INTERNAL)
    remember = address.keep(FORM)
    gr.on([widget.change for widget in knobs.form()], None, knobs.form(), kept, js=remember, **INTERNAL)

    def reopen(value: Any, request: gr.Request) -> list[Any]:
        """The view that the address holds, else the form as this browser left it."""
        query = dict(request.query_params)
        wanted = query.get("model", engine.info.name)
        if wanted != engine.info.name:
            gr.Warning(f"This address is a view of {wanted}; here {engine.info.name} answers.")
        return recall(address.read(query) or value, engine)

    fresh = gr.State("")
    spelled = _wire_traits(engine, knobs, start, fresh)

    def hints() -> list[Any]:
        return [gr.update(placeholder=own) for own in own_sampling(engine)]

    def hint(listener: Any) -> Any:
        return listener(hints, None, knobs.drawn(), **INTERNAL)

    def draw(listener: Any) -> Any:
        """Offers the loaded model's vignettes and methods, what is chosen staying; shows how it draws."""

        def choices(prompt: str, form: Any) -> list[Any]:
            found = offer(engine.vignettes(), prompt)
            return [*found, gr.update(choices=methods(engine)), *layers_of(engine, form).values()]

        chooser = [knobs.foundation, knobs.vignette, knobs.method, knobs.low, knobs.high]
        return hint(say(listener(choices, [knobs.prompt, kept], chooser, **INTERNAL).then).then)

    def on_load(page: gr.Blocks) -> None:
        hint(page.load)
        restored = [knobs.foundation, knobs.vignette, knobs.slider, *knobs.form()]
        loaded = page.load(reopen, kept, restored, **INTERNAL)
        say(loaded.then)
        start(loaded.then)
        loaded.then(spelled, knobs.mix, knobs.mixed, **INTERNAL)
        page.unload(leave)

    return Steering(knobs, (measures, bars), on_load, draw, start, say, fresh)


def _wire_traits(engine: Engine, knobs: Controls, start: Any, fresh: gr.State) -> Callable[[str], list[Any]]:
    """A trait made of two words is chosen and answered with; what is returned sets the sliders of a mix."""

    def make(plus: str, minus: str, target: str, said: str) -> Iterator[tuple[Any, Any]]:
        """The note while it goes on, and at last the trait with what is to be said of it."""
        try:
            scenes, replies = of_lines(said or "")
            asked = plus or "", minus or "", replies, target or "", scenes
            for news in followed(lambda say: engine.make_trait(*asked, progress=say)):
                if isinstance(news, str):
                    yield view.note(f"{news}; answers go first ..."), None
                else:
                    yield gr.skip(), news
        except SettingsError as problem:
            yield view.error(str(problem)), None
        yield nothing(2)

    def show(news: tuple[Trait, str] | None) -> tuple[Any, ...]:
        if news is None:
            return nothing(4)
        trait, drafted = news
        shown = in_lines(trait)
        if drafted and trait.statements:
            drafted += f" {len(trait.statements)} pairs are kept apart, to measure it by."
        label = "What either would say (+, -), and to what (?)"
        label += f". {drafted} Edit it and press Make it to have the vector made from it."
        text = gr.update(value=shown, label=label, visible=True)
        chosen = gr.update(choices=traits(engine), value=trait.name)
        return chosen, view.made(trait), f"{trait.name} {trait.target}: {shown}", text

    def spelled(typed: str) -> list[Any]:
        return spread(engine, typed or "")

    typed = [knobs.plus, knobs.minus, knobs.target, knobs.replies]
    made = gr.State(None)  # `fresh` would be heard of before the trait is chosen if a stream brought both
    pressed = knobs.make.click(make, typed, [knobs.making, made], **INTERNAL)
    pressed.then(show, made, [knobs.trait, knobs.making, fresh, knobs.replies], **INTERNAL)
    gr.on([knobs.plus.input, knobs.minus.input], None, None, knobs.replies, js="() => ''", **INTERNAL)
    start(fresh.change)  # an answer to a trait that was not made would wipe out why
    fresh.change(spelled, knobs.mix, knobs.mixed, **INTERNAL)
    return spelled


def _wire_answers(engine: Engine, knobs: Controls, newest: Newest, outputs: list[Any]) -> Callable[..., Any]:
    """Every control starts an answer; what is returned makes one more listener do it."""
    pool = ThreadPoolExecutor(4, thread_name_prefix="profile")
    stream = answering(engine, newest, pool)
    typed = answering(engine, newest, pool, TYPING_PAUSE)
    knobs.slider.input(None, knobs.slider, knobs.exact, js="(v) => v", **INTERNAL)
    knobs.exact.input(
        None, knobs.exact, knobs.slider, js="(v) => Math.max(-4, Math.min(4, v ?? 0))", **INTERNAL
    )
    # A textbox's .input misses what is pasted with the mouse; .change also hears a vignette being chosen.
    texts = [w.change for w in (knobs.prompt, *knobs.drawn())]
    gr.on([*texts, knobs.exact.input, knobs.seed.input], typed, knobs.request(), outputs, **STREAM)
    chosen = [w.input for w in (knobs.trait, knobs.greedy, knobs.method, knobs.where)]
    gr.on([*chosen, knobs.prompt.submit], stream, knobs.request(), outputs, **STREAM)
    dragged = {
        "alpha": ([knobs.slider], knobs.request(alpha=knobs.slider)),
        "others": ([knobs.low, knobs.high, knobs.length], knobs.request()),
    }
    _wire_mix(engine, knobs, stream, typed, outputs)
    for name, (sliders, inputs) in dragged.items():
        gr.on([w.input for w in sliders], None, js=f"() => SteerHeal.moved('{name}')", **INTERNAL)
        plot.pace(name, STEP_S).click(stream, inputs, outputs, **STREAM)
    return lambda listener: listener(stream, knobs.request(), outputs, **STREAM)


def _wire_mix(engine: Engine, knobs: Controls, stream: Handler, typed: Handler, outputs: list[Any]) -> None:
    """A mix said by hand is written, one that is typed sets its sliders, either is answered; and the trait is
    chosen that it is measured on."""

    def chosen(mix: str, trait: str) -> Any:
        found = measured(engine, mix, trait)
        return gr.skip() if found == trait else gr.update(choices=traits(engine), value=found)

    def write(trait: str, before: str, *mixed: Any) -> tuple[Any, Any]:
        """A text that says so already stays: it may have been typed on meanwhile."""
        said = composed(before or "", *mixed)
        return gr.skip() if said == before else said, chosen(said, trait)

    def begin(vector: str | None, dose: float | None) -> Any:
        """A vector that is put in does something."""
        return START_DOSE if vector and not dose else gr.skip()

    def spell(trait: str, said: str) -> list[Any]:
        return [*spread(engine, said or ""), chosen(said or "", trait)]

    def by_text(request: gr.Request, *values: Any) -> Iterator[Any]:
        form = dict(zip(FORM, values, strict=False))
        form["trait"] = measured(engine, form["mix"] or "", form["trait"])  # as is about to be chosen
        yield from typed(request, *form.values(), values[-1])

    doses, vectors = knobs.mixed[1::2], knobs.mixed[::2]
    gr.on([w.input for w in doses], None, js="() => SteerHeal.moved('mix')", **INTERNAL)
    moved, named = plot.pace("mix", STEP_S).click, [knobs.trait, knobs.mix]
    by_hand = write, [*named, *knobs.mixed], [knobs.mix, knobs.trait]
    moved(*by_hand, **LATEST).then(stream, knobs.request(), outputs, **STREAM)
    for vector, dose in zip(vectors, doses, strict=True):
        put = vector.input(begin, [vector, dose], dose, **LATEST).then(*by_hand, **LATEST)
        put.then(stream, knobs.request(), outputs, **STREAM)
    said = [knobs.mix.input, knobs.mix.submit]
    gr.on(said, spell, named, [*knobs.mixed, knobs.trait], **LATEST)
    gr.on(said, by_text, knobs.request(), outputs, **STREAM)


def _wire_choosers(engine: Engine, knobs: Controls) -> Callable[..., Any]:
    """A foundation offers its vignettes, a vignette fills the prompt, two numbers say the layers; what is
    returned makes one more listener say them."""

    def choose(name: str) -> tuple[Any, str]:
        vignettes = engine.vignettes()
        first = next((v for v in vignettes if v.foundation == name), vignettes[0])
        chooser = gr.update(choices=by_foundation(vignettes, first.foundation), value=first.id)
        return chooser, first.text

    def ask(chosen: str | None) -> Any:
        return next((v.text for v in engine.vignettes() if v.id == chosen), gr.skip())

    def claimed(typed: str, foundation: str) -> Any:
        return offer(engine.vignettes(), typed, foundation)[1]

    told = [knobs.prompt, knobs.foundation]
    knobs.prompt.change(claimed, told, knobs.vignette, **LATEST)
    knobs.foundation.input(choose, knobs.foundation, [knobs.vignette, knobs.prompt], **INTERNAL)
    knobs.vignette.input(ask, knobs.vignette, knobs.prompt, **INTERNAL)
    band = [knobs.low, knobs.high]

    def say(first: float | None, last: float | None) -> str:
        return say_layers(engine, first, last)

    # Not `.change`: after a model of another depth was chosen, gradio's sliders report one again and again.
    gr.on([w.input for w in band], say, band, knobs.layers, **LATEST)
    return lambda listener: listener(say, band, knobs.layers, **INTERNAL)
