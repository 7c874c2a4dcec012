"""Copying drills: say a thing back. They teach the copying that restating a scene needs."""

import random

from demo_model.lexicon import ADJECTIVES, NOUNS, pseudo_word
from demo_model.scene import Casting
from demo_model.words import WORDS
from steer_heal.config import FOUNDATIONS

SAID = WORDS["drills"]


def _words(rng: random.Random) -> str:
    pool = (*ADJECTIVES, *NOUNS)
    return " ".join(
        rng.choice(pool) if rng.random() < 0.75 else pseudo_word(rng) for _ in range(rng.randint(3, 9))
    )


def drill(rng: random.Random, casting: Casting) -> tuple[str, str]:
    """A request to repeat something, and that thing."""
    kind = rng.random()
    if kind < 0.4:
        words = _words(rng)
        return rng.choice(SAID["again"]).format(w=words), words
    scene = casting.draw(rng, rng.choice(FOUNDATIONS))
    if kind < 0.6:
        return f"{scene.seen()} {rng.choice(SAID['who'])}", scene.actor.phrase
    if kind < 0.8:
        return f"{scene.seen()} {rng.choice(SAID['what'])}", scene.doing()
    text = scene.seen()
    return rng.choice(SAID["again"]).format(w=text), text
