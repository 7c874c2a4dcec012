"""Which model answers: what is loaded, and a chooser of another."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gradio as gr

from components import view
from components.steer import INTERNAL
from components.telling import told
from steer_heal.config import DEFAULT_MODEL, GEMMA, SettingsError

LOG = logging.getLogger(__name__)


def build(engine: Any) -> tuple[gr.HTML, gr.Dropdown]:
    """The header and the chooser: Gemma first, the bundled model, any hub id or folder typed in."""
    known = list(dict.fromkeys([GEMMA, DEFAULT_MODEL, engine.info.name]))
    head = gr.HTML(view.header(engine.info), apply_default_css=False, elem_id="header")
    with gr.Accordion("Another model", open=False, elem_id="model-more"):
        chooser = gr.Dropdown(
            known,
            value=engine.info.name,
            label="model: bundled, a hub id, or a folder on the page's machine; loading stops all answers",
            allow_custom_value=True,
            elem_id="model",
        )
    return head, chooser


def wire(engine: Any, head: gr.HTML, chooser: gr.Dropdown) -> Any:
    """Loading what is chosen, step by step in the header; one that cannot be had leaves what answers now."""

    def choose(name: str) -> Iterator[tuple[Any, Any]]:
        wanted = (name or "").strip()
        loading = f"Loading {wanted}: "
        yield view.header(engine.info) + view.note(loading + "looking for it"), gr.skip()
        try:
            for step, info in told(lambda say: engine.use(wanted, progress=say)):
                if info is None:
                    yield view.header(engine.info) + view.note(loading + step), gr.skip()
                else:
                    yield view.header(info), info.name
        except SettingsError as problem:
            yield view.header(engine.info) + view.error(str(problem)), engine.info.name
        except Exception:
            LOG.exception("%r cannot be loaded", wanted)
            yield view.header(engine.info) + view.error(view.BROKE), engine.info.name

    return chooser.input(choose, chooser, [head, chooser], **INTERNAL)
