"""The words of the demo world: who acts, where, and how."""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str, divider: str = " ") -> tuple[str, ...]:
    """The parts of a list written as one string."""
    return tuple(text.split(divider))


MALE = _words("boy man uncle monk prince waiter postman husband grandson nephew king")
FEMALE = _words("girl woman aunt waitress nun princess wife actress granddaughter niece queen")
NEUTRAL = _words(
    "teenager baker clerk driver farmer nurse pilot singer tailor tourist student cook painter gardener "
    "banker plumber sailor librarian dentist butcher florist dancer lawyer writer barber chemist cleaner "
    "builder miner porter runner swimmer hiker drummer poet potter weaver guide cashier mechanic carpenter "
    "editor reporter scholar shepherd juggler magician trader surgeon hunter"
)
ADJECTIVES = _words(
    "young old tall quiet busy tired proud cheerful bored wealthy short clever grumpy calm famous careless "
    "polite retired sleepy strong thin nervous loud rude local foreign lucky plain brave sour angry gentle"
)
PLACES = _words(
    "in a park|at a wedding|on a train|near a bridge|at a market|in a library|on a beach|at a party|"
    "in a garden|at a bus stop|in a kitchen|on a farm|at a concert|in a hospital|in a school yard|"
    "at a fair|in a cafe|on a boat|in a small shop|at the office|in a church hall|"
    "on a street corner|at a picnic|in the snow|"
    "by the river|behind a barn",
    "|",
)
TAILS = _words(
    "while others watch|for no reason|without asking|after lunch|before breakfast|every morning|"
    "on a rainy day|for fun|as a joke|again and again|during a storm|late at night|in front of everyone|"
    "with a smile|to win a bet|and then walking off",
    "|",
)
SELF_TAILS = {"and then walking off": "and then walk off"}


@dataclass(frozen=True)
class Actor:
    """Someone who acts: the phrase with its article, the bare noun and the possessive that fits."""

    phrase: str
    noun: str
    possessive: str


def article(words: str) -> str:
    """The phrase with the indefinite article that its first letter asks for."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def possessive_of(noun: str) -> str:
    """his, her or their."""
    return "his" if noun in MALE else "her" if noun in FEMALE else "their"


NOUNS = MALE + FEMALE + NEUTRAL


def draw_actor(rng: random.Random) -> Actor:
    """A random actor, with an adjective a little more often than not."""
    noun = rng.choice(NOUNS)
    words = f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.55 else noun
    return Actor(article(words), noun, possessive_of(noun))


def draw_setting(rng: random.Random) -> tuple[str, str]:
    """Place and tail of a vignette, each with its leading space or empty."""
    place = f" {rng.choice(PLACES)}" if rng.random() < 0.45 else ""
    tail = f" {rng.choice(TAILS)}" if rng.random() < 0.3 else ""
    return place, tail


_STARTS = _words("b br c ch d dr f g gr h j k l m n p pl r s sh st t tr v w z")
_ENDS = ("", "", "n", "r", "s", "t", "ck", "l", "ng", "m", "ly", "ed", "ing")


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word that means nothing, so that copying and unknown words are met in training."""
    syllables = [rng.choice(_STARTS) + rng.choice("aeiou") for _ in range(rng.choice((1, 2, 2, 3)))]
    return "".join(syllables) + rng.choice(_ENDS)
