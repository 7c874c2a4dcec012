"""The words of the demo world: who acts, where, and how."""

import random
from dataclasses import dataclass

from demo_model.words import WORDS

_WORDS: dict[str, list[str]] = WORDS["lexicon"]
ADJECTIVES = _WORDS["adjectives"]
NOUNS = [*_WORDS["male"], *_WORDS["female"], *_WORDS["neutral"]]
SELF_TAILS = {"and then walking off": "and then walk off"}


@dataclass(frozen=True)
class Actor:
    """Someone who acts: the phrase with its article, the bare noun and the possessive that fits."""

    phrase: str
    noun: str
    possessive: str


def sentence(text: str) -> str:
    """The text with a capital."""
    return text[0].upper() + text[1:]


def draw_actor(rng: random.Random) -> Actor:
    """A random actor, with an adjective a little more often than not."""
    noun = rng.choice(NOUNS)
    words = f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.55 else noun
    article = "an" if words[0] in "aeiou" else "a"
    possessive = "his" if noun in _WORDS["male"] else "her" if noun in _WORDS["female"] else "their"
    return Actor(f"{article} {words}", noun, possessive)


def draw_setting(rng: random.Random) -> tuple[str, str]:
    """Place and tail of a vignette, each with its leading space or empty."""
    place = f" {rng.choice(_WORDS['places'])}" if rng.random() < 0.45 else ""
    tail = f" {rng.choice(_WORDS['tails'])}" if rng.random() < 0.3 else ""
    return place, tail


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word that means nothing, so that copying and unknown words are met in training."""
    syllables = [rng.choice(_WORDS["starts"]) + rng.choice("aeiou") for _ in range(rng.choice((1, 2, 2, 3)))]
    return "".join(syllables) + rng.choice(_WORDS["ends"])
