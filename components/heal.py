"""The form that launches a heal run."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, Self

import gradio as gr

from components import plot, view, view_runs
from components.answering import nothing
from components.controls import Controls, band, ends
from components.engine import Engine
from components.steer import INTERNAL, PRESS, Steering
from components.watching import remembered, started
from components.words import what_is
from steer_heal.config import (
    AUTO,
    EVERYWHERE,
    MAX_ROUNDS,
    MAX_RUN_NAME_CHARS,
    PRESETS,
    HealSettings,
    SettingsError,
    changed,
    describe_settings,
    heal_settings,
    named_settings,
)

TWICE_S = 2.0
"""A second press of the same within it is the first one's."""

NOT_STARTED = "Not started: {}. Press Heal again to go on all the same, without random directions beside it."


@dataclass(frozen=True)
class Form:
    """What the form holds, by name. What is left blank or 0 is as in the preset.

    `others`: any setting by its name, a line each.
    """

    trait: str
    low: float
    high: float
    name: str | None = None
    rounds: float | None = 3
    preset: str = "quick"
    seed: float | None = None
    completions: float | None = None
    vignettes: float | None = None
    epochs: float | None = None
    method: str = AUTO
    where: str = EVERYWHERE
    mix: str | None = None
    vignette_file: str | None = None
    others: str | None = None

    @classmethod
    def of(cls, basis: HealSettings) -> Self:
        """The form that gives `basis` again, under a name of its own."""
        evaluate, name = basis.evaluate, f"{basis.name} again".strip()[:MAX_RUN_NAME_CHARS]
        return cls(
            basis.trait, *basis.band, name=name, rounds=basis.rounds, preset=basis.preset, seed=basis.seed,
            completions=basis.data.n_answers, vignettes=evaluate.n_vignettes or 0, epochs=basis.train.epochs,
            method=basis.extract.method, where=basis.data.where, mix=basis.mix,
            vignette_file=evaluate.vignettes or "", others="",
        )  # fmt: skip

    def settings(self, model: str, basis: HealSettings | None = None) -> HealSettings:
        """A run's settings; what is not on the form is as in the preset, or as in `basis` when that is given.

        Errors: `SettingsError`."""
        if self.rounds is None:
            raise SettingsError(f"rounds is empty: type a number from 1 to {MAX_ROUNDS}.")
        values: dict[str, Any] = {"data": {"where": self.where}}
        if self.completions and (basis is None or self.completions != basis.data.n_answers):
            least = max(2, min(8, int(self.completions) // 16))
            values["data"] |= {"n_answers": self.completions, "min_kept": least}
        evaluated = {
            "n_vignettes": self.vignettes or None, "vignettes": (self.vignette_file or "").strip() or None
        }  # fmt: skip
        values["evaluate"] = {key: value for key, value in evaluated.items() if value is not None}
        if self.epochs:
            values["train"] = {"epochs": self.epochs}
        values |= {"trait": self.trait, "mix": self.mix or "", "rounds": self.rounds, "seed": self.seed or 0}
        values |= {"name": (self.name or "").strip(), "band": (self.low, self.high)}
        values |= {"extract": {"method": self.method}}
        for key, value in named_settings(self.others or "").items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        if basis is None:
            return heal_settings(self.preset, model=model, **values)
        return changed(basis, **values)


@dataclass(frozen=True)
class Healing:
    """The launch event, so that the page can redraw after it; how a click on Clone fills the form; the runs
    that go on, under the button, and the line for what is to be said there. `asked`: the inputs by
    name of whose values `settings` makes a run's settings."""

    launched: Any
    clone: Callable[[Any], Any]
    card: gr.HTML
    message: gr.HTML
    asked: dict[str, Any]
    settings: Callable[..., HealSettings]


class Presses:
    """Who has pressed a button lately, and for what: a second press for the same within `TWICE_S` is the
    first one's."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[float, Any]] = {}
        self._lock = Lock()

    def first(self, session: str, asked: Any) -> bool:
        """Whether this press is not the second one."""
        now = time.monotonic()
        with self._lock:
            self._at = {other: at for other, at in self._at.items() if now - at[0] < TWICE_S}
            if session in self._at and self._at[session][1] == asked:
                return False
            self._at[session] = now, asked
            return True

    def forget(self, session: str) -> None:
        """The press came to nothing."""
        with self._lock:
            self._at.pop(session, None)


def _form(knobs: Controls) -> tuple[dict[str, Any], gr.Button, gr.HTML, gr.HTML]:
    """The widgets by the names of `Form`, those of the steering panel among them; the button; a line for what
    it has to say; and the runs that go on."""
    about = "train the steered answers in, and see what stays without it; trait or mix, and layers, as set"
    gr.HTML(view.heading("Heal", about + what_is("round")))
    with gr.Row(equal_height=False, elem_classes="sh-pressed sh-tight"):
        name = gr.Textbox(
            label="Name",
            placeholder="optional",
            max_length=MAX_RUN_NAME_CHARS,
            min_width=100,
            scale=3,
            elem_id="run-name",
        )
        rounds = gr.Number(3, label="Rounds", precision=0, min_width=64, elem_id="rounds")
        preset = gr.Dropdown(
            list(PRESETS), value="quick", label="Preset", min_width=96, scale=2, elem_id="preset"
        )
        seed = gr.Number(0, label="Seed", precision=0, min_width=64, elem_id="run-seed")
        launch = gr.Button("Heal", variant="primary", scale=2, min_width=90, elem_id="launch")
    message = gr.HTML(elem_id="heal-message", elem_classes="sh-slot")
    card = plot.buttons("", elem_id="heal-card")
    with gr.Accordion("More settings", open=False, elem_id="run-more"):
        gr.HTML(view.note("Smaller or larger than the preset; 0: as the preset has it."))
        with gr.Row(elem_classes="sh-tight"):
            completions = gr.Number(
                0, label="Completions", precision=0, minimum=0, min_width=90, elem_id="run-completions"
            )
            vignettes = gr.Number(
                0, label="Vignettes", precision=0, minimum=0, min_width=90, elem_id="run-vignettes"
            )
            epochs = gr.Number(0, label="Epochs", precision=0, minimum=0, min_width=90, elem_id="run-epochs")
            file = gr.Textbox(
                label="Vignettes from a file",
                placeholder="JSONL file here, or a set of tinymfv",
                max_length=500,
                min_width=160,
                elem_id="run-vignette-file",
            )
        with gr.Accordion("Research: every setting of the method", open=False, elem_id="run-every"):
            others = gr.Textbox(
                label="Settings by name, a line each",
                placeholder="train.lam=0.5\ntrain.divergence=kl_fwd\ndata.alphas=[1, 1.5]",
                lines=3,
                max_length=4000,
                elem_id="run-others",
            )
            gr.HTML(view_runs.setting_names(describe_settings()), elem_id="run-setting-names")
    widgets: dict[str, Any] = {
        "trait": knobs.trait, "low": knobs.low, "high": knobs.high, "name": name, "rounds": rounds,
        "preset": preset, "seed": seed, "completions": completions, "vignettes": vignettes, "epochs": epochs,
        "method": knobs.method, "where": knobs.where, "mix": knobs.mix,
        "vignette_file": file, "others": others,
    }  # fmt: skip
    return widgets, launch, message, card


def alike(engine: Engine, wanted: HealSettings) -> str:
    """A note that a run with these very settings is there already, under whichever name; nothing if none."""
    for row in engine.runs.rows():
        if (row.model, row.trait, row.seed) == (wanted.model, wanted.trait, wanted.seed):
            with suppress(SettingsError):  # a folder that cannot be read is like no other
                known = changed(engine.runs.settings(row.run_id), name=wanted.name)
                if wanted.extract.method == AUTO:  # which a run that was launched has decided
                    known = changed(known, extract={"method": AUTO})
                if known == wanted:
                    name = view.esc(row.name or row.run_id)
                    return view.note(f"As {name}, seed and all: the same numbers. Another seed would differ.")
    return ""


def build(engine: Engine, steering: Steering, kept: gr.BrowserState) -> Healing:
    """Make the form and wire it."""
    widgets, launch, message, card = _form(steering.knobs)
    preset, basis, doubted = widgets["preset"], gr.State(""), gr.State(None)
    form = list(widgets.values())

    pressed = Presses()

    def settings(like: str, *values: Any) -> HealSettings:
        known = engine.runs.settings(like) if like else None
        given = dict(zip(widgets, values, strict=True))
        given["low"], given["high"] = band(engine, given["low"], given["high"])
        return Form(**given).settings(engine.info.name, known)

    def start(request: gr.Request, value: Any, told: Any, like: str, *values: Any) -> tuple[Any, ...]:
        """`told`: the values of the press that was answered with a doubt; the same again starts the run."""
        session = request.session_hash or ""
        if not pressed.first(session, values):
            return nothing(4)
        try:
            wanted = settings(like, *values)
            if doubt := engine.doubt(wanted):
                if told != [like, *values]:
                    return gr.skip(), view.note(NOT_STARTED.format(doubt)), [like, *values], like
                wanted = changed(wanted, evaluate={"controls": 0})
            twin = alike(engine, wanted)
            run_id = engine.launch(wanted)
        except SettingsError as problem:
            pressed.forget(session)
            return gr.skip(), view.error(str(problem)), None, like
        return started(remembered(value), run_id), twin, None, ""

    def fill(event: gr.EventData) -> list[Any]:
        data = event._data if isinstance(event._data, dict) else {}
        if data.get("action") != "clone":
            return [gr.skip() for _ in (*form, message, basis)]
        like = str(data.get("run", ""))
        try:
            wanted = engine.runs.settings(like)
            filled = asdict(Form.of(wanted))
            filled["low"], filled["high"] = ends(engine, wanted.band)
        except SettingsError as problem:
            return [*(gr.skip() for _ in form), view.error(str(problem)), ""]
        name = wanted.name or like
        said = f"as {name}, also in what is not on this form: change something, then Heal; a preset resets it"
        return [*(filled[key] for key in widgets), view.note(said), like]

    preset.input(lambda: ("", ""), None, [message, basis], **INTERNAL)
    # The page itself would drop, unheard, what is pressed while the first press is on its way.
    asked, answered = [kept, doubted, basis, *form], [kept, message, doubted, basis]
    launched = launch.click(start, asked, answered, **PRESS)
    clone = [*form, message, basis]
    return Healing(
        launched, lambda table: table.click(fill, None, clone, **PRESS), card, message,
        {"like": basis, **widgets}, settings,
    )  # fmt: skip
