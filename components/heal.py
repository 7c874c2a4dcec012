"""The form that launches a heal run."""

from __future__ import annotations

from typing import Any

import gradio as gr

from components import view
from components.steer import INTERNAL, Steering
from components.watching import remembered
from steer_heal.config import MAX_ROUNDS, OWN_METHODS, PRESETS, SettingsError, heal_settings


def settings(
    model: str,
    trait: str,
    low: float,
    high: float,
    name: str | None,
    rounds: float | None,
    preset: str,
    seed: float | None,
    completions: float | None,
    vignettes: float | None,
    epochs: float | None,
    method: str = OWN_METHODS[0],
    vignette_file: str | None = None,
) -> Any:
    """The form as `HealSettings`; what is left blank keeps the preset's value. Errors: `SettingsError`."""
    if rounds is None:
        raise SettingsError(f"rounds is empty: type a number from 1 to {MAX_ROUNDS}.")
    changed: dict[str, Any] = {}
    if completions is not None:
        changed["data"] = {"n_completions": completions, "min_kept": max(2, min(16, int(completions) // 8))}
    evaluated = {"n_vignettes": vignettes, "vignettes": (vignette_file or "").strip() or None}
    changed["evaluate"] = {key: value for key, value in evaluated.items() if value is not None}
    if epochs is not None:
        changed["train"] = {"epochs": epochs}
    return heal_settings(
        preset,
        model=model,
        trait=trait,
        rounds=rounds,
        seed=seed or 0,
        name=(name or "").strip(),
        band=(low, high),
        extract={"method": method},
        **changed,
    )


def build(engine: Any, steering: Steering, kept: gr.BrowserState) -> Any:
    """Make the form; returns the launch event, so that the page can redraw after it."""
    about = "over-steer, keep what is coherent, train it in, in the background; trait, band, method as above"
    gr.HTML(view.heading("Heal", about))
    with gr.Row(equal_height=True):
        name = gr.Textbox(
            label="Name", placeholder="optional", max_length=80, min_width=110, elem_id="run-name"
        )
        rounds = gr.Number(3, label="Rounds", precision=0, min_width=70, elem_id="rounds")
        preset = gr.Dropdown(list(PRESETS), value="quick", label="Preset", min_width=110, elem_id="preset")
        seed = gr.Number(0, label="Seed", precision=0, min_width=70, elem_id="run-seed")
    with gr.Accordion("Smaller or larger than the preset", open=False, elem_id="run-more"), gr.Row():
        completions = gr.Number(
            None, label="Completions a round", precision=0, min_width=110, elem_id="run-completions"
        )
        vignettes = gr.Number(None, label="Vignettes", precision=0, min_width=110, elem_id="run-vignettes")
        epochs = gr.Number(None, label="Epochs", precision=0, min_width=110, elem_id="run-epochs")
        file = gr.Textbox(
            label="Vignettes from a file",
            placeholder="JSONL on this machine",
            max_length=500,
            min_width=160,
            elem_id="run-vignette-file",
        )
    launch = gr.Button("Heal", variant="primary", elem_id="launch")
    message = gr.HTML(elem_id="heal-message", elem_classes="sh-slot")

    def start(value: Any, *form: Any) -> tuple[Any, str]:
        try:
            run_id = engine.launch(settings(engine.info.name, *form))
        except SettingsError as problem:
            return gr.skip(), view.error(str(problem))
        memory = remembered(value)
        shown = None if memory["runs"] is None else [*memory["runs"], run_id]
        return {**memory, "runs": shown}, view.note(f"started {run_id}: its rounds appear on the map")

    form = [
        kept,
        steering.trait,
        steering.low,
        steering.high,
        name,
        rounds,
        preset,
        seed,
        completions,
        vignettes,
        epochs,
        steering.method,
        file,
    ]
    return launch.click(start, form, [kept, message], **INTERNAL)
