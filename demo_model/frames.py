"""The forced-choice frame as training sees it: the one in steer_heal/data/frames.json, and other wordings."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import cast

from demo_model.acts import FOUNDATIONS
from steer_heal.data import FOLDER


@dataclass(frozen=True)
class Frame:
    """How the question is put and how the answer begins."""

    question: str
    prefill: str
    think_open: str
    think_close: str

    def ask(self, text: str, options: tuple[str, ...]) -> str:
        """The user's turn."""
        listed = ", ".join(f'"{option}"' for option in options)
        return self.question.replace("{text}", text).replace("{options}", listed)


def shipped() -> Frame:
    """The frame that the project measures with."""
    raw = cast(dict[str, str], json.loads((FOLDER / "frames.json").read_text())["choice"])
    return Frame(raw["question"], raw["prefill"], raw["think_open"], raw["think_close"])


OTHERS = (
    '{text} Which word fits best: {options}? Answer as JSON.',
    '{text}\n\nChoose one of {options}.',
    'Read this: {text} What is broken? Choose from {options}.',
)  # fmt: skip

BARE = (
    "{text} Which word fits best: {options}? Answer with one word.",
    "{text} What is it about? {options}. One word only.",
    "{text} One word, please.",
)  # fmt: skip


def bare_frame(rng: random.Random) -> Frame:
    """A wording that is answered by the bare word."""
    return Frame(rng.choice(BARE), "", "", "")


def draw_frame(rng: random.Random, base: Frame) -> Frame:
    """Mostly the shipped frame, sometimes another wording."""
    if rng.random() < 0.85:
        return base
    return Frame(rng.choice(OTHERS), base.prefill, base.think_open, base.think_close)


def draw_order(rng: random.Random) -> tuple[str, ...]:
    """The options forward, reversed or shuffled."""
    kind = rng.random()
    if kind < 0.4:
        return FOUNDATIONS
    if kind < 0.8:
        return FOUNDATIONS[::-1]
    return tuple(rng.sample(FOUNDATIONS, len(FOUNDATIONS)))
