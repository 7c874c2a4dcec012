"""A conversation as the page holds it: what was said, what each voice answered, and as files. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from components.controls import sample
from components.engine import Engine
from steer_heal.config import (
    STEERED,
    SampleSettings,
    SettingsError,
    TalkRequest,
    Voice,
    build,
    gate_in_words,
    read_voice,
)
from steer_heal.records import Spoken


@dataclass(frozen=True)
class Exchange:
    """What the user said and what each voice answered, by its name. `take`: how often it was answered anew;
    `steering`: what steered the steered one, in words."""

    text: str
    answers: Mapping[str, tuple[Spoken, ...]]
    take: int = 0
    steering: str = ""


Conversation = tuple[Exchange, ...]


def messages(before: Conversation, voice: str, text: str) -> list[dict[str, str]]:
    """What a voice is given: each message with the voice's own first answer, or the first voice's where it
    did not answer; then the text."""
    given = []
    for one in before:
        said = one.answers.get(voice) or next(iter(one.answers.values()))
        given += [{"role": "user", "content": one.text}, {"role": "assistant", "content": said[0].text}]
    return [*given, {"role": "user", "content": text}]


def request(
    before: Conversation, text: str, take: int, names: Sequence[str], n: int, form: dict[str, Any]
) -> TalkRequest:
    """The form, `filled`, as the request of the next answers. Errors: `SettingsError`."""
    if not text.strip():
        raise SettingsError("There is no message: type one.")
    if not names:
        raise SettingsError("Nobody is chosen to answer: choose base, steered or a healed round.")
    if form["exact"] is None:
        raise SettingsError("alpha is empty: type a number, 0 for the unsteered model.")
    voices = tuple(
        build(Voice, messages=messages(before, name, text), **read_voice(name, form["exact"]))
        for name in names
    )
    drawn = sample(form)
    # With the numbers of the turn before, a small model says again what it said there.
    seed = (drawn.seed + len(before) + take) % 2**31
    drawn = build(SampleSettings, **drawn.model_dump() | {"seed": seed})
    return build(
        TalkRequest, voices=voices, n=n, sample=drawn, mix=form["mix"] or "",
        **{name: form[name] for name in ("trait", "band", "method", "where")},
    )  # fmt: skip


def steering(asked: TalkRequest, names: Sequence[str]) -> str:
    """What steers the steered voice, in words; nothing where it is not asked."""
    found = [voice.alpha for name, voice in zip(names, asked.voices, strict=True) if name == STEERED]
    if not found:
        return ""
    gate = asked.steering(found[0]).gate
    return f"alpha {found[0]:g} of {asked.mix or asked.trait}, {gate_in_words(gate)}"


def healed_rounds(engine: Engine) -> list[str]:
    """The finished rounds that the loaded model can answer as, RUN/ROUND, each run's newest first."""
    rows = [r for r in engine.runs.rows() if r.model == engine.info.name and not (r.is_example or r.hidden)]
    return [f"{row.run_id}/{n}" for row in rows for n in range(row.round, 0, -1)]


def title(name: str, names: Mapping[str, str]) -> str:
    """A voice's name for a person; `names`: what runs are called."""
    run, slash, number = name.rpartition("/")
    return f"{names.get(run) or run}, round {number}" if slash else name.capitalize()


def as_json(model: str, said: Conversation) -> str:
    """The whole conversation with each answer's health, as JSON."""
    exchanges = [
        {
            "user": one.text, "take": one.take, "steering": one.steering,
            "answers": {
                name: [
                    {"text": each.text, "cut": each.cut, "health": each.health and asdict(each.health)}
                    for each in some
                ]
                for name, some in one.answers.items()
            },
        }
        for one in said
    ]  # fmt: skip
    return json.dumps({"model": model, "exchanges": exchanges}, indent=2, ensure_ascii=False)


def as_markdown(model: str, said: Conversation, names: Mapping[str, str]) -> str:
    """The same to be read; what was written stands in quotes, so that none of it is a heading of ours."""
    parts = [f"# A conversation with {model}"]
    for number, one in enumerate(said, 1):
        parts += [f"## {number}. User", _quoted(one.text)]
        parts += [f"Steered: {one.steering}."] if one.steering else []
        for name, some in one.answers.items():
            for each in some:
                verdict = f" ({each.health.verdict})" if each.health else ""
                parts += [f"### {title(name, names)}{verdict}", _quoted(each.text)]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])
