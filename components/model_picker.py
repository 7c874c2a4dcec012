"""Which model answers: what is loaded, and a chooser of another."""

import logging
from collections.abc import Iterator
from typing import Any

import gradio as gr

from components import view
from components.engine import Engine
from components.following import followed
from components.steer import INTERNAL
from steer_heal.config import SMOLLM2, SettingsError

LOG = logging.getLogger(__name__)


def build(engine: Engine) -> tuple[gr.HTML, gr.Dropdown, gr.HTML]:
    """The header, the chooser, and what can be chosen: the known models, what else is here, any hub id,
    folder or GGUF file typed in."""
    rows = engine.models()
    names = list(dict.fromkeys([*(row.name for row in rows), engine.info.name]))
    about = "model: one of these, a hub id, or a folder or .gguf file on the page's machine; loading "
    about += "stops all answers"
    with gr.Row(elem_classes="sh-top"):
        head = gr.HTML(_answering(engine), apply_default_css=False, elem_id="header")
        with gr.Accordion("Another model", open=False, elem_id="model-more"):
            chooser = gr.Dropdown(
                names, value=engine.info.name, label=about, allow_custom_value=True, elem_id="model"
            )
            listed = gr.HTML(view.models(rows), apply_default_css=False, elem_id="models")
    return head, chooser, listed


def _answering(engine: Engine) -> str:
    """What answers, and what would come before it."""
    info = engine.info
    rows = [row for row in engine.models() if info.is_demo and row.name == SMOLLM2 and not row.is_here]
    missing = (view.note(f"{row.name} ({row.about}) is not here: {row.get}.") for row in rows)
    return view.header(info, "".join(missing))


def wire(page: gr.Blocks, engine: Engine, head: gr.HTML, chooser: gr.Dropdown, listed: gr.HTML) -> Any:
    """Loading what is chosen, fetched first where it is not here, step by step in the header; one that cannot
    be had leaves what answers now."""

    def choose(name: str) -> Iterator[tuple[Any, Any, Any]]:
        wanted = (name or "").strip()
        loading = f"Loading {wanted}: "
        yield view.header(engine.info, view.note(loading + "looking for it")), gr.skip(), gr.skip()
        try:
            for news in followed(lambda say: engine.use(wanted, progress=say)):
                if isinstance(news, str):
                    yield view.header(engine.info, view.note(loading + news)), gr.skip(), gr.skip()
                else:
                    yield view.header(news), news.name, view.models(engine.models())
        except SettingsError as problem:
            yield view.header(engine.info, view.error(str(problem))), engine.info.name, gr.skip()
        except Exception:
            LOG.exception("%r cannot be loaded", wanted)
            yield view.header(engine.info, view.error(view.BROKE)), engine.info.name, gr.skip()

    page.load(lambda: (_answering(engine), engine.info.name), None, [head, chooser], **INTERNAL)
    return chooser.input(choose, chooser, [head, chooser, listed], **INTERNAL)
