"""What a person sets before an answer: the question, the trait, the dose, how it is drawn; and its recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import address, view, view_dose
from components.engine import Engine
from components.words import what_is
from steer_heal.config import (
    AUTO,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    EVERYWHERE,
    GATES,
    MAX_ALPHA,
    MAX_MIX_CHARS,
    MAX_MIXED,
    MAX_NEW_TOKENS,
    MAX_PROMPT_CHARS,
    SampleSettings,
    SettingsError,
    build,
    read_mix,
    written,
)
from steer_heal.records import Trait, Vignette

FORM = (
    *("prompt", "trait", "exact", "low", "high", "length", "seed", "greedy"),
    *address.SAMPLING,
    "method",
    "where",
    "mix",
)
MAX_METHOD_CHARS = 80
MAX_REPLIES_CHARS = 20_000
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

    At the slider: `verdict`, one word for the steered text, `strip`, what is known of each dose, and `dose`,
    what alpha means. `low` and `high` are numbers of layers; outside the form a band is shares of depth.
    `mixed`: a vector and its dose, four times, which say `mix` by hand.
    """

    foundation: gr.Dropdown
    vignette: gr.Dropdown
    prompt: gr.Textbox
    trait: gr.Dropdown
    slider: gr.Slider
    exact: gr.Number
    verdict: gr.HTML
    strip: gr.HTML
    dose: gr.HTML
    low: gr.Slider
    high: gr.Slider
    layers: gr.HTML
    length: gr.Slider
    seed: gr.Number
    plus: gr.Textbox
    minus: gr.Textbox
    target: gr.Textbox
    make: gr.Button
    making: gr.HTML
    replies: gr.Textbox
    greedy: gr.Checkbox
    temperature: gr.Textbox
    top_p: gr.Textbox
    top_k: gr.Textbox
    method: gr.Dropdown
    where: gr.Dropdown
    mix: gr.Textbox
    mixed: tuple[Any, ...]
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
    with gr.Row(elem_classes="sh-tight"):
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
            label="Vignette: a scene",
            scale=4,
            min_width=200,
            elem_id="vignette",
        )
    prompt = gr.Textbox(
        first.text,
        label="What the model is told: edit it, or write your own",
        lines=2,
        max_lines=2,
        elem_id="prompt",
    )
    return {"foundation": foundation, "vignette": vignette, "prompt": prompt}


def _dose(engine: Engine) -> dict[str, Any]:
    with gr.Row(elem_classes="sh-dose-row"):
        with gr.Column(scale=9, min_width=220, elem_classes="sh-alpha"):
            about = "alpha: dose in c*"
            slider = gr.Slider(-4, 4, 1.0, step=0.05, label=about, elem_id="alpha", buttons=[])
            verdict = gr.HTML(elem_id="verdict", padding=False, apply_default_css=False)
            strip = gr.HTML(view_dose.strip({}, ""), elem_id="strip", padding=False, apply_default_css=False)
            dose = gr.HTML(view.dose(1.0), elem_id="dose", padding=False, apply_default_css=False)
        exact = gr.Number(1.0, label="exact", scale=0, min_width=84, elem_id="alpha-exact")
    return {"slider": slider, "exact": exact, "verdict": verdict, "strip": strip, "dose": dose}


def _trait(engine: Engine) -> dict[str, Any]:
    top, (first, last) = engine.info.n_layers - 1, ends(engine, DEFAULT_BAND)
    with gr.Row(elem_classes="sh-tight sh-trait"):
        trait = gr.Dropdown(
            traits(engine),
            value=DEFAULT_TRAIT,
            label="Trait",
            allow_custom_value=True,  # one that was made since the page was built
            scale=3,
            min_width=170,
            elem_id="trait",
        )
        look: dict[str, Any] = {"step": 1, "scale": 3, "min_width": 130, "buttons": []}
        low = gr.Slider(0, top, first, label="from layer", elem_id="low", **look)
        high = gr.Slider(0, top, last, label="to layer", elem_id="high", **look)
    with gr.Row(elem_classes="sh-beside"):
        said = say_layers(engine, first, last)
        layers = gr.HTML(said, elem_id="layers", padding=False, apply_default_css=False)
        drawn = _own_trait() | _mixing(engine) | _drawing(engine)
    return {"trait": trait, "low": low, "high": high, "layers": layers, **drawn}


def _mixing(engine: Engine) -> dict[str, Any]:
    mixed: list[Any] = []
    offered = traits(engine)
    (_, first), (_, second) = offered[:2]
    with gr.Accordion("Mix", open=False, elem_id="mixing"):
        mix = gr.Textbox(
            label="added instead of the trait's vector, in units of each one's c*",
            placeholder=f"0.8 {first} - 0.4 {second} @answer",
            max_length=MAX_MIX_CHARS,
            elem_id="mix",
        )
        with gr.Row(elem_classes="sh-tight"):
            for number in range(1, MAX_MIXED + 1):
                with gr.Column(min_width=150, elem_classes="sh-tight"):
                    mixed += [
                        gr.Dropdown(
                            offered, value=None, label=f"vector {number}", allow_custom_value=True,
                            elem_id=f"mixed-{number}",
                        ),
                        gr.Slider(
                            -4, 4, 0, step=0.05, label="dose in c*", buttons=[],
                            elem_id=f"mixed-dose-{number}",
                        ),
                    ]  # fmt: skip
    return {"mix": mix, "mixed": tuple(mixed)}


def composed(typed: str, *mixed: Any) -> str:
    """The expression of the vectors and doses set by hand, with the gate that was typed."""
    terms = [(dose, vector) for vector, dose in zip(mixed[::2], mixed[1::2], strict=True) if vector and dose]
    _, at, gate = typed.partition("@")
    return f"{written(terms)} @{gate.strip()}" if terms and at else written(terms)


def spread(engine: Engine, typed: str) -> list[Any]:
    """Updates of the vectors and doses from what was typed; as they are where that cannot be read yet."""
    try:
        terms = read_mix(typed).terms if typed.strip() else ()
    except SettingsError:
        return [gr.skip()] * 2 * MAX_MIXED
    held = [*((term.vector, term.weight) for term in terms), *[(None, 0.0)] * MAX_MIXED][:MAX_MIXED]
    return [
        update
        for vector, dose in held
        for update in (gr.update(choices=traits(engine), value=vector), max(-4.0, min(4.0, dose)))
    ]


def measured(engine: Engine, typed: str, trait: str) -> str:
    """The trait that bars, doses and a heal run measure: the one that the mix adds most of, where it does not
    add the chosen one."""
    try:
        adds = read_mix(typed, [name for _, name in traits(engine)]).adds
    except SettingsError:
        adds = ()
    return adds[0] if adds and trait not in adds else trait


def _own_trait() -> dict[str, Any]:
    with gr.Accordion("A trait of your own", open=False, elem_id="own-trait"):
        with gr.Row(elem_classes="sh-tight"):
            pole: dict[str, Any] = {"max_length": 400, "min_width": 130}
            plus = gr.Textbox(label="more", placeholder="formal", elem_id="plus", **pole)
            minus = gr.Textbox(label="and less", placeholder="casual", elem_id="minus", **pole)
            target = gr.Textbox(
                label="foundations it should move", placeholder="Care=1; or its own axis",
                max_length=200, min_width=200, elem_id="target",
            )  # fmt: skip
            make = gr.Button("Make it", size="sm", scale=0, min_width=80, elem_id="make-trait")
        making = gr.HTML(elem_id="making", padding=False, apply_default_css=False)
        replies = gr.Textbox(
            visible=False, lines=6, max_lines=12, max_length=MAX_REPLIES_CHARS, elem_id="replies"
        )
    named = {"plus": plus, "minus": minus, "target": target}
    return named | {"make": make, "making": making, "replies": replies}


def _drawing(engine: Engine) -> dict[str, Any]:
    about = "How the vector is made and the answer drawn"
    with gr.Accordion(about, open=False, elem_id="drawing"):
        with gr.Row(elem_classes="sh-tight"):
            method = gr.Dropdown(
                methods(engine), value=AUTO, label="method", allow_custom_value=True, min_width=200,
                elem_id="method",
            )  # fmt: skip
            where = gr.Dropdown(
                [(words, gate) for gate, words in GATES.items()], value=EVERYWHERE, elem_id="where",
                label="tokens that are steered, or type: first 20", allow_custom_value=True, min_width=200,
            )  # fmt: skip
        with gr.Row(elem_classes="sh-tight"):
            length = gr.Slider(
                8, 256, 60, step=4, label="at most this many tokens", buttons=[], min_width=220,
                elem_id="length",
            )  # fmt: skip
            seed = gr.Number(0, label="seed", precision=0, minimum=0, min_width=100, elem_id="seed")
        labels = ("temperature (0 is greedy)", "top-p (1: no filter)", "top-k (0: no filter)")
        with gr.Row(elem_classes="sh-tight"):
            drawn = [
                gr.Textbox(
                    label=label,
                    placeholder=own,
                    max_length=12,
                    min_width=130,
                    elem_id=name.replace("_", "-"),
                )
                for name, label, own in zip(address.SAMPLING, labels, own_sampling(engine), strict=True)
            ]
        greedy = gr.Checkbox(False, label="greedy (always the likeliest token)", elem_id="greedy")
    stamp = gr.Number(visible="hidden")
    named: dict[str, Any] = {"length": length, "seed": seed, "greedy": greedy, "method": method}
    named |= {"where": where, "stamp": stamp}
    return named | dict(zip(address.SAMPLING, drawn, strict=True))


def in_lines(trait: Trait) -> str:
    """A trait's pairs of replies as text that can be edited."""
    return "\n".join(f"{mark} {text}" for mark, text in trait.spoken())


def of_lines(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The scenes and the pairs that were edited. Errors: `SettingsError` for lines that are no pairs."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("?")]
    if [line[0] for line in said] != ["+", "-"] * (len(said) // 2):
        raise SettingsError(
            "The replies are no pairs: write a line that begins with +, then one with -, and before "
            "them one with ? that says what they answer."
        )
    replies = [line[1:].strip() for line in said]
    scenes = [line[1:].strip() for line in lines if line.startswith("?")]
    return scenes, list(zip(replies[::2], replies[1::2], strict=True))


def traits(engine: Engine) -> list[tuple[str, str]]:
    """The trait chooser's entries: what a person reads, and the name."""
    return [(trait.title, trait.name) for trait in engine.traits()]


def methods(engine: Engine) -> list[tuple[str, str]]:
    """The method chooser's entries for the loaded model: what a person reads, and the name."""
    return [(title, name) for name, title in engine.methods().items()]


def controls(engine: Engine) -> Controls:
    """Make the widgets, top to bottom as they stand on the page."""
    dosed, aimed = _dose(engine), _trait(engine)
    return Controls(**dosed, **aimed, **_chooser(engine.vignettes()))


def own_sampling(engine: Engine) -> list[str]:
    """The model's own temperature, top-p and top-k, which hold where nothing is typed."""
    return [f"{getattr(engine.info.sampling, name):g}" for name in address.SAMPLING]


def sample(form: dict[str, Any], longest: int = MAX_NEW_TOKENS) -> SampleSettings:
    """How the form wants answers drawn, of at most `longest` tokens. Errors: `SettingsError`."""
    return build(
        SampleSettings, max_new_tokens=min(form["length"], longest), seed=form["seed"] or 0,
        greedy=form["greedy"], **{name: (form[name] or "").strip() or None for name in address.SAMPLING},
    )  # fmt: skip


def ends(engine: Engine, band: tuple[float, float]) -> tuple[int, int]:
    """The first and the last layer that a band holds in the loaded model. Errors: `SettingsError`."""
    found = engine.layers(band)
    return found[0], found[-1]


def band(engine: Engine, first: float | None, last: float | None) -> tuple[float, float]:
    """The shares of depth that hold just the layers from one to the other, in either order: the usual band
    itself where they are its layers. Errors: `SettingsError`."""
    if first is None or last is None:
        raise SettingsError("a layer is empty: type a whole number from 0.")
    low, high = sorted((int(first), int(last)))
    if (low, high) == ends(engine, DEFAULT_BAND):
        return DEFAULT_BAND
    return low / engine.info.n_layers, (high + 1) / engine.info.n_layers


def filled(engine: Engine, values: Sequence[Any]) -> dict[str, Any]:
    """The widgets' values by the names of `FORM`, and as `band` what the two layers mean in shares of depth.
    Errors: `SettingsError`."""
    form = dict(zip(FORM, values, strict=True))
    return {**form, "band": band(engine, form["low"], form["high"])}


def span(low: int, high: int) -> str:
    return f"layer {low}" if low == high else f"layers {low} to {high}"


def say_layers(engine: Engine, first: float | None, last: float | None) -> str:
    """Which layers are steered and where they lie."""
    if first is None or last is None:
        return ""
    low, high = sorted((int(first), int(last)))
    n_layers = engine.info.n_layers
    where = f"{span(low, high)} of 0 to {n_layers - 1}"
    shares = f"{low / n_layers:.0%} to {(high + 1) / n_layers:.0%} of the way up"
    return f'<div class="sh-dim sh-dose">{where}: {shares}{what_is("layers")}</div>'


# ---- what a browser remembers of the form -----------------------------------------------------------------


def sound(name: str, value: Any, traits: set[str]) -> bool:
    """Whether a remembered value can be put back: a browser may send anything."""
    if name == "prompt":
        return isinstance(value, str) and 0 < len(value) <= MAX_PROMPT_CHARS
    if name == "trait":
        return isinstance(value, str) and value in traits
    if name == "greedy":
        return isinstance(value, bool)
    if name == "mix":
        return isinstance(value, str) and len(value) <= MAX_MIX_CHARS
    if name in ("method", "where"):
        return isinstance(value, str) and len(value) <= MAX_METHOD_CHARS
    if name in address.SAMPLING:
        value = address.number(value) if isinstance(value, str) else None
    low, high = LIMITS[name]
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def recall(kept: Any, engine: Engine) -> list[Any]:
    """Updates of foundation, vignette, slider and the form's widgets; what is not sound stays as it is, and
    without a prompt it is the first vignette. The band is kept in shares of depth, so that it means the same
    in another model."""
    kept = kept if isinstance(kept, dict) else {}
    titled, vignettes = traits(engine), engine.vignettes()
    names = {name for _, name in titled}
    known = {name: kept[name] for name in FORM if name in kept and sound(name, kept[name], names)}
    form = {"prompt": vignettes[0].text, **known, **layers_of(engine, known)}
    slider = max(-4.0, min(4.0, form["exact"])) if "exact" in form else gr.skip()
    form["trait"] = gr.update(choices=titled, value=form.get("trait", DEFAULT_TRAIT))
    form["method"] = gr.update(choices=methods(engine), value=form.get("method", AUTO))
    return [*offer(vignettes, form["prompt"]), slider, *(form.get(name, gr.skip()) for name in FORM)]


def layers_of(engine: Engine, kept: Any) -> dict[str, Any]:
    """Updates of both layer sliders for the loaded model, from the shares of depth that were kept."""
    kept = kept if isinstance(kept, dict) else {}
    shares = tuple(kept.get(name, usual) for name, usual in zip(("low", "high"), DEFAULT_BAND, strict=True))
    try:
        found = ends(engine, shares)
    except (SettingsError, ValueError, TypeError):
        found = ends(engine, DEFAULT_BAND)
    top = engine.info.n_layers - 1
    return {name: gr.update(value=at, maximum=top) for name, at in zip(("low", "high"), found, strict=True)}


def offer(vignettes: list[Vignette], prompt: str, foundation: str = "") -> list[Any]:
    """Updates of foundation and vignette: what there is to choose, and which of them the prompt is; where it
    is none, those of `foundation`, or of the first one."""
    shown = next((v for v in vignettes if v.text == prompt), None)
    foundation = shown.foundation if shown else foundation or vignettes[0].foundation
    chosen = shown.id if shown else None
    return [foundation, gr.update(choices=by_foundation(vignettes, foundation), value=chosen)]
