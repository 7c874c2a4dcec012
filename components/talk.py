"""The panel in which one talks to base, to the steered model and to healed rounds, side by side."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import plot, view, view_talk
from components.controls import Controls, filled
from components.engine import Engine
from components.steer import INTERNAL
from components.talking import (
    Conversation,
    Exchange,
    as_json,
    as_markdown,
    healed_rounds,
    request,
    steering,
    title,
)
from steer_heal.config import BASE, MAX_PROMPT_CHARS, MAX_SAMPLES, MAX_VOICES, STEERED, SettingsError
from steer_heal.records import TalkFrame

LOG = logging.getLogger(__name__)
STEP_S = 0.15
"""Between two looks at what is being written."""
SAVE = "(text) => SteerHeal.save('conversation.{}', text)"
TYPE = "() => SteerHeal.reveal('talk-text')"


@dataclass(frozen=True)
class Panel:
    """The drawer, and what a click on a round's button fills: who answers."""

    drawer: gr.Accordion
    voices: gr.Dropdown


def names_of(engine: Engine) -> dict[str, str]:
    """What the runs are called, by id."""
    return {row.run_id: row.name or row.run_id for row in engine.runs.rows()}


def offered(engine: Engine) -> list[tuple[str, str]]:
    """Who may answer: what a person reads, and the name."""
    names = names_of(engine)
    return [(title(name, names), name) for name in (BASE, STEERED, *healed_rounds(engine))]


def talking(engine: Engine, again: bool) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """The handler that streams the next answers; `again`: those to the last message anew."""

    def answer(
        said: Conversation, cut: int | None, text: str, names: list[str], n: float, *form: Any,
        session: str,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        before, take = said if cut is None else said[:cut], 0
        if again:
            if not said:
                raise SettingsError("There is nothing to answer again: type a message.")
            before, text, take = said[:-1], said[-1].text, said[-1].take + 1
        asked = request(before, text, take, names, int(n), filled(engine, form))
        about, called, told, frame = steering(asked, names), names_of(engine), 0.0, None
        now, cleared = said, again
        yield gr.skip(), view_talk.status(TalkFrame(())), gr.skip(), gr.skip(), gr.skip()
        for frame in engine.talk(asked, session=session):
            if not frame.done and time.monotonic() < told + STEP_S:
                continue
            if frame.superseded:
                return
            told = time.monotonic()
            if frame.voices:
                now = (*before, Exchange(text, dict(zip(names, frame.voices, strict=True)), take, about))
            typed = gr.skip() if cleared else ""
            yield view_talk.log(now, called), view_talk.status(frame), typed, gr.skip(), gr.skip()
            cleared = True
        if frame is not None and frame.done:
            yield gr.skip(), gr.skip(), gr.skip(), now, None

    def stream(request: gr.Request, said: Conversation, *values: Any) -> Iterator[tuple[Any, ...]]:
        def stays(problem: str) -> tuple[Any, ...]:
            typed = gr.skip() if again else values[1]
            return view_talk.log(said, names_of(engine)), view.error(problem), typed, gr.skip(), gr.skip()

        try:
            yield from answer(said, *values, session=request.session_hash or "")
        except SettingsError as problem:
            yield stays(str(problem))
        except Exception:
            LOG.exception("talking failed")
            yield stays(view.BROKE)

    return stream


def build(engine: Engine, knobs: Controls) -> Panel:
    """Make the panel and wire it."""
    with gr.Accordion("Talk to what you made", open=False, elem_id="talk") as drawer:
        with gr.Row(elem_classes="sh-tight"):
            # The rounds are offered once it opens: the page may be there before its engine.
            voices = gr.Dropdown(
                [(title(name, {}), name) for name in (BASE, STEERED)], value=[BASE, STEERED],
                multiselect=True, max_choices=MAX_VOICES,
                label=f"who answers, up to {MAX_VOICES} (of rounds: those of your own runs)",
                allow_custom_value=True, scale=5, min_width=220, elem_id="talk-voices",
            )  # fmt: skip
            n = gr.Slider(
                1, MAX_SAMPLES, 1, step=1, label="answers each", buttons=[], scale=1, min_width=120,
                elem_id="talk-samples",
            )  # fmt: skip
        log = plot.buttons(view_talk.EMPTY, elem_id="talk-log")
        status = gr.HTML(elem_id="talk-status", apply_default_css=False)
        text = gr.Textbox(
            label="your message: Enter sends it", lines=1, max_lines=6, max_length=MAX_PROMPT_CHARS,
            elem_id="talk-text",
        )  # fmt: skip
        with gr.Row(elem_classes="sh-wrap sh-talk-buttons"):
            send, again, stop, anew, markdown, whole = (
                gr.Button(label, size="sm", min_width=90, elem_id=f"talk-{name}")
                for label, name in (
                    ("Send", "send"), ("Answer again", "again"), ("Stop", "stop"),
                    ("New conversation", "new"), ("Save as Markdown", "md"), ("Save as JSON", "json"),
                )
            )  # fmt: skip
        saved = gr.Textbox(visible="hidden")
    said, cut = gr.State(()), gr.State(None)
    inputs, outputs = [said, cut, text, voices, n, *knobs.form()], [log, status, text, said, cut]
    stream: dict[str, Any] = {**INTERNAL, "concurrency_limit": None}
    gr.on([send.click, text.submit], talking(engine, again=False), inputs, outputs, **stream)
    again.click(talking(engine, again=True), inputs, outputs, **stream)

    def halt(request: gr.Request) -> None:
        engine.stop(request.session_hash or "")

    stop.click(halt, None, None, queue=False, **INTERNAL)
    anew.click(lambda: (view_talk.EMPTY, "", (), None), None, [log, status, said, cut], **INTERNAL)
    log.click(edited, said, [text, cut, status], **INTERNAL).then(None, js=TYPE, **INTERNAL)

    def choices() -> Any:
        return gr.update(choices=offered(engine))

    gr.on([drawer.expand, voices.focus], choices, None, voices, **INTERNAL)
    for button, ending, write in (
        (markdown, "md", lambda held: as_markdown(engine.info.name, held, names_of(engine))),
        (whole, "json", lambda held: as_json(engine.info.name, held)),
    ):
        button.click(write, said, saved, **INTERNAL).then(None, saved, js=SAVE.format(ending), **INTERNAL)
    return Panel(drawer, voices)


def edited(said: Conversation, event: gr.EventData) -> tuple[Any, Any, Any]:
    """An earlier message comes back into the box; what followed it goes once it is sent."""
    data = event._data if isinstance(event._data, dict) else {}
    number = str(data.get("turn", ""))
    if not number.isdecimal() or int(number) >= len(said):
        return gr.skip(), gr.skip(), gr.skip()
    note = f"Editing message {int(number) + 1}: once it is sent, what followed it is gone."
    return said[int(number)].text, int(number), view.note(note)


def opening(engine: Engine) -> Callable[..., tuple[Any, Any]]:
    """The handler of a click on a round's buttons: the one that says so lets that round answer here."""

    def opens(event: gr.EventData) -> tuple[Any, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        if data.get("action") != "talk":
            return gr.skip(), gr.skip()
        name = f"{data.get('run', '')}/{data.get('round', '')}"
        chosen = gr.update(choices=offered(engine), value=[BASE, name])
        return gr.update(open=True), chosen

    return opens
