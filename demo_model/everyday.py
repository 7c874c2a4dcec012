"""Everyday topics and small talk: what is asked and what is answered when nothing is at stake."""

import random

from demo_model.lexicon import sentence
from demo_model.words import WORDS

TOPICS: dict[str, tuple[str, str]] = WORDS["everyday"]["topics"]
"""With two remarks on each."""
QUESTIONS: list[str] = WORDS["everyday"]["questions"]


def _fill(template: str, remark: str) -> str:
    return template.format(r=remark, R=sentence(remark))


def question(rng: random.Random) -> tuple[str, str]:
    """A topic and a message that asks about it."""
    topic = rng.choice(list(TOPICS))
    return topic, rng.choice(QUESTIONS).format(t=topic)


def remark(rng: random.Random, topic: str) -> str:
    """One or two sentences on the topic."""
    first, second = rng.sample(TOPICS[topic], 2)
    text = _fill(rng.choice(WORDS["everyday"]["leads"]), first)
    return f"{text} {_fill(rng.choice(WORDS['everyday']['seconds']), second)}" if rng.random() < 0.6 else text


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A greeting or the like, and its answer."""
    talk = rng.choice(WORDS["everyday"]["small talk"])
    return rng.choice(talk["asked"]), rng.choice(talk["answered"])
