"""What a person sets before an answer: the question, the trait, the dose, how it is drawn; and its recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import address, view, view_dose
from components.engine import Engine
from steer_heal.config import (
    AUTO,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    MAX_ALPHA,
    MAX_NEW_TOKENS,
    MAX_PROMPT_CHARS,
    SampleSettings,
    SettingsError,
    build,
)
from steer_heal.records import Vignette

FORM = (
    *("prompt", "trait", "exact", "low", "high", "length", "seed", "greedy"),
    *address.SAMPLING,
    "method",
)
MAX_METHOD_CHARS = 80
LIMITS = {
    "exact": (-MAX_ALPHA, MAX_ALPHA),
    "low": (0.0, 1.0),
    "high": (0.0, 1.0),
    "length": (8.0, 256.0),
    "seed": (0.0, 2.0**31 - 1),
    "temperature": (0.0, 10.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1.0, 2.0**31 - 1),
}


@dataclass(frozen=True)
class Controls:
    """The widgets. `slider` shows alpha from -4 to 4, `exact` holds it whole; `stamp` orders requests.

    Under the slider: `strip`, what is known of each dose, and `dose`, what alpha means.
    """

    foundation: gr.Dropdown
    vignette: gr.Dropdown
    prompt: gr.Textbox
    trait: gr.Dropdown
    slider: gr.Slider
    exact: gr.Number
    strip: gr.HTML
    dose: gr.HTML
    low: gr.Slider
    high: gr.Slider
    layers: gr.HTML
    length: gr.Slider
    seed: gr.Number
    greedy: gr.Checkbox
    temperature: gr.Textbox
    top_p: gr.Textbox
    top_k: gr.Textbox
    method: gr.Dropdown
    stamp: gr.Number

    def form(self) -> list[Any]:
        """The widgets whose values make a request, in the order of `FORM`."""
        return [getattr(self, name) for name in FORM]

    def drawn(self) -> list[Any]:
        """The widgets that stand empty where the model's own settings hold."""
        return [getattr(self, name) for name in address.SAMPLING]

    def request(self, *, alpha: Any = None) -> list[Any]:
        """The inputs of an answer; `alpha` is the widget that was moved when not `exact`."""
        return [*(alpha if name == "exact" and alpha else getattr(self, name) for name in FORM), self.stamp]


def by_foundation(vignettes: list[Vignette], foundation: str) -> list[tuple[str, str]]:
    """The chooser's entries: the text, shortened, and the vignette's id."""
    return [
        (v.text if len(v.text) <= 110 else v.text[:107] + "...", v.id)
        for v in vignettes
        if v.foundation == foundation
    ]


def _chooser(vignettes: list[Vignette]) -> dict[str, Any]:
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
    return {"foundation": foundation, "vignette": vignette, "prompt": prompt}


def _dose(engine: Engine) -> dict[str, Any]:
    traits = [(t.title, t.name) for t in engine.traits()]
    with gr.Row():
        trait = gr.Dropdown(
            traits, value=DEFAULT_TRAIT, label="Trait", scale=4, min_width=210, elem_id="trait"
        )
        with gr.Column(scale=6, min_width=260, elem_classes="sh-alpha"):
            slider = gr.Slider(
                -4,
                4,
                value=1.0,
                step=0.05,
                label="alpha: dose in units of c* (0 is base, 1 is one nat)",
                elem_id="alpha",
                buttons=[],
            )
            strip = gr.HTML(view_dose.strip({}, ""), elem_id="strip", padding=False, apply_default_css=False)
            dose = gr.HTML(elem_id="dose", padding=False, apply_default_css=False)
        exact = gr.Number(1.0, label="exact alpha", scale=1, min_width=100, elem_id="alpha-exact")
    with gr.Row(elem_classes="sh-wrap"):
        low = gr.Slider(
            0, 1, DEFAULT_BAND[0], step=0.01, label="band from", min_width=190, buttons=[], elem_id="low"
        )
        high = gr.Slider(
            0, 1, DEFAULT_BAND[1], step=0.01, label="band to", min_width=190, buttons=[], elem_id="high"
        )
        layers = gr.HTML(say_layers(engine, *DEFAULT_BAND), elem_id="layers")
    alpha = {"slider": slider, "exact": exact, "strip": strip, "dose": dose}
    return {"trait": trait, **alpha, "low": low, "high": high, "layers": layers}


def _drawing(engine: Engine) -> dict[str, Any]:
    with gr.Accordion("How the vector is made and the answer drawn", open=False), gr.Row():
        method = gr.Dropdown(
            methods(engine),
            value=AUTO,
            label="method",
            allow_custom_value=True,
            min_width=200,
            elem_id="method",
        )
        length = gr.Slider(8, 256, 60, step=4, label="at most this many tokens", buttons=[], elem_id="length")
        seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=100, elem_id="seed")
        greedy = gr.Checkbox(False, label="greedy (always the likeliest token)", elem_id="greedy")
        labels = ("temperature (0 is greedy)", "top-p (1: no filter)", "top-k (0: no filter)")
        drawn = [
            gr.Textbox(
                label=label, placeholder=own, max_length=12, min_width=130, elem_id=name.replace("_", "-")
            )
            for name, label, own in zip(address.SAMPLING, labels, own_sampling(engine), strict=True)
        ]
    stamp = gr.Number(visible="hidden")
    named = {"length": length, "seed": seed, "greedy": greedy, "method": method, "stamp": stamp}
    return named | dict(zip(address.SAMPLING, drawn, strict=True))


def methods(engine: Engine) -> list[tuple[str, str]]:
    """The method chooser's entries for the loaded model: what a person reads, and the name."""
    return [(title, name) for name, title in engine.methods().items()]


def controls(engine: Engine) -> Controls:
    """Make the widgets, top to bottom as they stand on the page."""
    return Controls(**_chooser(engine.vignettes()), **_dose(engine), **_drawing(engine))


def own_sampling(engine: Engine) -> list[str]:
    """The model's own temperature, top-p and top-k, which hold where nothing is typed."""
    return [f"{getattr(engine.info.sampling, name):g}" for name in address.SAMPLING]


def sample(form: dict[str, Any], longest: int = MAX_NEW_TOKENS) -> SampleSettings:
    """How the form wants answers drawn, of at most `longest` tokens. Errors: `SettingsError`."""
    return build(
        SampleSettings, max_new_tokens=min(form["length"], longest), seed=form["seed"] or 0,
        greedy=form["greedy"], **{name: (form[name] or "").strip() or None for name in address.SAMPLING},
    )  # fmt: skip


def say_layers(engine: Engine, low: float, high: float) -> str:
    """Which layers the band means, or why it means none."""
    try:
        found = engine.layers((low, high))
    except (SettingsError, ValueError) as problem:
        return view.error(str(problem))
    span = f"layer {found[0]}" if len(found) == 1 else f"layers {found[0]} to {found[-1]}"
    return view.note(f"shares of depth: {span} of 0 to {engine.info.n_layers - 1}")


# ---- what a browser remembers of the form -----------------------------------------------------------------


def sound(name: str, value: Any, traits: set[str]) -> bool:
    """Whether a remembered value can be put back: a browser may send anything."""
    if name == "prompt":
        return isinstance(value, str) and 0 < len(value) <= MAX_PROMPT_CHARS
    if name == "trait":
        return isinstance(value, str) and value in traits
    if name == "greedy":
        return isinstance(value, bool)
    if name == "method":
        return isinstance(value, str) and len(value) <= MAX_METHOD_CHARS
    if name in address.SAMPLING:
        value = address.number(value) if isinstance(value, str) else None
    low, high = LIMITS[name]
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def recall(
    kept: Any, traits: set[str], vignettes: list[Vignette], offered: list[tuple[str, str]]
) -> list[Any]:
    """Updates of foundation, vignette, slider and the form's widgets, with the methods `offered`; what is not
    sound stays as it is, and without a prompt it is the first vignette."""
    kept = kept if isinstance(kept, dict) else {}
    known = {name: kept[name] for name in FORM if name in kept and sound(name, kept[name], traits)}
    form = {"prompt": vignettes[0].text, **known}
    slider = max(-4.0, min(4.0, form["exact"])) if "exact" in form else gr.skip()
    form["method"] = gr.update(choices=offered, value=form.get("method", AUTO))
    return [*offer(vignettes, form["prompt"]), slider, *(form.get(name, gr.skip()) for name in FORM)]


def offer(vignettes: list[Vignette], prompt: str) -> list[Any]:
    """Updates of foundation and vignette: what there is to choose, and which of them the prompt is."""
    shown = next((v for v in vignettes if v.text == prompt), None)
    foundation = (shown or vignettes[0]).foundation
    chosen = shown.id if shown else None
    return [foundation, gr.update(choices=by_foundation(vignettes, foundation), value=chosen)]
