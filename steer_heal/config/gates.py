"""Where and when a text is steered: what share of its dose each token gets, by its place."""

import re
from typing import Annotated

from pydantic import AfterValidator

from steer_heal.config.base import MAX_NEW_TOKENS

EVERYWHERE = "both"
GATES = {
    EVERYWHERE: "prompt and answer",
    "prompt": "prompt only",
    "answer": "answer only",
    "first 8": "the first 8 tokens of the answer",
    "after 8": "the answer after 8 tokens",
    "ramp 8": "the answer, rising over 8 tokens",
}
"""Each kind of gate as it is written, and in words; the 8 may be another number."""
GATE = r"both|prompt|answer|(?:first|after|ramp)\s+\d+"
"""What a gate looks like."""
FORMS = "both, prompt, answer, first N, after N or ramp N"


def check_gate(text: str) -> str:
    """The gate, with one space before its number; `ValueError` for what is none."""
    said = " ".join(text.lower().split())
    if not re.fullmatch(GATE, said):
        raise ValueError(f"{text[:40]!r} says no place: write {FORMS}, such as first 8")
    word, _, number = said.partition(" ")
    if number and not 1 <= int(number) <= MAX_NEW_TOKENS:
        raise ValueError(f"{said!r} counts no tokens of an answer: give 1 to {MAX_NEW_TOKENS}")
    return f"{word} {int(number)}" if number else word


def steered_share(gate: str, place: int) -> float:
    """What share of its dose a token gets: `place` counts the answer's tokens from 0, and is -1 for the
    prompt's. A token is steered where the vector is added to its own residual; what it changes is seen from
    the next token on."""
    word, _, number = gate.partition(" ")
    if word == EVERYWHERE or place < 0:
        return float(word in (EVERYWHERE, "prompt"))
    if word == "ramp":
        return min(1.0, (place + 1) / int(number))
    steered = {"prompt": False, "answer": True}
    if word in steered:
        return float(steered[word])
    return float(place < int(number) if word == "first" else place >= int(number))


def gate_in_words(gate: str) -> str:
    """Which tokens are steered, for a person."""
    word, _, number = gate.partition(" ")
    return GATES[f"{word} 8"].replace("8", number) if number else GATES[word]


Gate = Annotated[str, AfterValidator(check_gate)]
