"""The forced-choice frame as training sees it: the one in steer_heal/data/frames.json, and other wordings."""

import random
from dataclasses import replace

from demo_model.words import WORDS
from steer_heal import data
from steer_heal.config import FOUNDATIONS
from steer_heal.data import Frame


def shipped() -> Frame:
    """The frame that the project measures with."""
    frame = data.frame("choice")
    assert isinstance(frame, Frame)
    return frame


def draw_frame(rng: random.Random, base: Frame) -> Frame:
    """Mostly the shipped frame, sometimes another wording."""
    return base if rng.random() < 0.85 else replace(base, question=rng.choice(WORDS["frames"]["others"]))


def render(rng: random.Random, frame: Frame, text: str) -> str:
    """The user's turn, with the options forward, reversed or shuffled."""
    kind = rng.random()
    if kind < 0.8:
        return frame.render(text, "forward" if kind < 0.4 else "reversed")
    shuffled = tuple(rng.sample(FOUNDATIONS, len(FOUNDATIONS)))
    return replace(frame, options=shuffled).render(text, "forward")
