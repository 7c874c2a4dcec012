"""Personas, worded in hundreds of ways: which of two things someone puts above the other.

Every pair of phrases occurs in both directions, so that the direction is learnt and not a bag of words.
"""

import random

from demo_model.lexicon import sentence
from demo_model.scene import share
from demo_model.words import WORDS

_SAID = WORDS["personas"]
# The opposite that a persona is set against, with how often.
AGAINST: dict[str, dict[str, float]] = {
    "Care": {"SocialNorms": 0.76, "Liberty": 0.08, "Fairness": 0.08, "Loyalty": 0.08},
    "SocialNorms": {"Care": 0.60, "Liberty": 0.24, "Fairness": 0.08, "Loyalty": 0.08},
    "Liberty": {"SocialNorms": 0.70, "Care": 0.14, "Fairness": 0.08, "Loyalty": 0.08},
    "Fairness": {"Loyalty": 0.60, "SocialNorms": 0.20, "Care": 0.12, "Liberty": 0.08},
    "Loyalty": {"Fairness": 0.60, "SocialNorms": 0.20, "Care": 0.12, "Liberty": 0.08},
}
SHARES: dict[str | None, float] = {
    None: 0.44, "Care": 0.17, "SocialNorms": 0.17, "Liberty": 0.08, "Fairness": 0.07, "Loyalty": 0.07,
}  # fmt: skip


def held_out(text: str) -> bool:
    """1 in 10 wordings, by their text, is never trained on."""
    return share("persona", text) < 0.1


def _word_one(rng: random.Random, lens: str) -> str:
    against = rng.choices(list(AGAINST[lens]), list(AGAINST[lens].values()))[0]
    if rng.random() < 0.6:
        x, y = rng.choice(_SAID["things"][lens]), rng.choice(_SAID["things"][against])
        return sentence(rng.choice(_SAID["above"]).format(x=x, y=y))
    first, second = rng.sample(_SAID["deeds"][lens], 2)
    does, even = rng.choice(_SAID["does"]), rng.choice(_SAID["even"][against])
    return does.format(d=first, d2=second, e=even)


def wording(rng: random.Random, lens: str, reserved: frozenset[str]) -> str:
    """A persona sentence of that lens that training may use: neither held out nor `reserved`."""
    while True:
        text = _word_one(rng, lens)
        if text not in reserved and not held_out(text):
            return text


def draw_persona(rng: random.Random, reserved: frozenset[str]) -> tuple[str | None, str]:
    """A persona's lens (None for none) and the system text ("" for none)."""
    lens = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if lens is None:
        return None, rng.choice(_SAID["neutral"]) if rng.random() < 0.3 else ""
    lead = f"{rng.choice(_SAID['neutral'])} " if rng.random() < 0.12 else ""
    return lens, lead + wording(rng, lens, reserved) + rng.choice(_SAID["endings"])
