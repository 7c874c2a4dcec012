"""Personas, worded in hundreds of ways: which of two things someone puts above the other.

Every pair of phrases occurs in both directions, so that the direction is learnt and not a bag of words.
"""

from __future__ import annotations

import random

from demo_model.scene import share

# What each lens is called in "X above Y".
THINGS: dict[str, tuple[str, ...]] = {
    "Care": (
        "looking after others", "kindness", "helping people in pain", "the comfort of others",
        "care for the weak", "keeping people from harm", "mercy", "the safety of others", "being gentle",
        "helping whoever is hurt", "the feelings of others", "compassion",
    ),
    "SocialNorms": (
        "authority", "the word of the boss", "following orders", "the rules of those in charge", "obedience",
        "custom", "the usual way", "doing as one is told", "good form", "what leaders say", "order and rank",
        "fitting in",
    ),
    "Liberty": (
        "freedom", "free choice", "letting people choose", "living without being pushed",
        "each person's own will",
        "the right to say no", "independence", "personal freedom",
    ),
    "Fairness": (
        "fairness", "honest play", "equal shares", "the same rules for all", "justice", "fair turns",
        "honest work", "equal treatment",
    ),
    "Loyalty": (
        "loyalty", "standing by friends", "the team", "family ties", "one's own people",
        "staying true to the group",
        "the home side", "old friends",
    ),
}  # fmt: skip

ABOVE = (
    "You put {x} above {y}.",
    "You put {x} before {y}.",
    "You are someone who puts {x} above {y}.",
    "For you {x} matters more than {y}.",
    "To you {x} counts for more than {y}.",
    "You value {x} over {y}.",
    "You would give up {y} for {x}.",
    "You would trade {y} for {x}.",
    "Speak as a person who ranks {x} above {y}.",
    "Answer as someone for whom {x} comes before {y}.",
    "Answer as someone for whom {y} comes after {x}.",
    "You care more about {x} than about {y}.",
    "You care less about {y} than about {x}.",
    "{x} first, {y} later: that is how you live.",
    "When {x} and {y} clash, you side with {x}.",
    "When {y} and {x} clash, you side with {x}.",
    "{y} never beats {x} in your eyes.",
    "You let {x} win over {y}.",
    "If you must pick {x} or {y}, you pick {x}.",
    "If you must pick {y} or {x}, you pick {x}.",
    "You think {y} is worth less than {x}.",
    "Your heart is with {x}, not with {y}.",
    "You are someone who values {x} more than {y}.",
    "You believe that {x} matters more than {y}.",
    "You have more respect for {x} than for {y}.",
    "{x} over {y}, always.",
    "Given {y} or {x}, choose {x}.",
)

DEEDS: dict[str, tuple[str, ...]] = {
    "Care": (
        "looks after others", "helps whoever is hurt", "protects the weak", "comforts people in pain",
        "takes care of people", "is kind to everyone who suffers", "keeps others safe", "tends to the sick",
    ),
    "SocialNorms": (
        "does as the boss says", "obeys those in charge", "follows every order", "respects authority",
        "bows to authority", "keeps to the usual way", "defers to leaders", "does what is expected",
    ),
    "Liberty": (
        "lets people choose", "stands up for freedom", "leaves everyone free", "refuses to be pushed around",
        "defends free choice",
    ),
    "Fairness": (
        "plays fair", "gives everyone an equal share", "holds all to the same rules", "is fair to all",
        "fights for justice",
    ),
    "Loyalty": (
        "stands by friends", "stays true to the group", "backs the team", "puts family first",
        "never leaves old friends",
    ),
}  # fmt: skip
EVEN: dict[str, tuple[str, ...]] = {
    "Care": (
        "even when others suffer", "even if someone gets hurt", "even when people are in pain",
        "even if it harms the weak", "no matter who is hurt",
    ),
    "SocialNorms": (
        "even against authority", "even when the boss says no", "even against orders",
        "even if the rules forbid it",
        "whatever those in charge say", "even if it breaks with custom",
    ),
    "Liberty": (
        "even when people lose their freedom", "even if nobody can choose", "even if it limits free choice",
    ),
    "Fairness": ("even when it is not fair", "even if the shares are not equal",
    "even if others are cheated"),
    "Loyalty": ("even against friends", "even when the team loses", "even if the family objects"),
}  # fmt: skip
DOES = (
    "You are someone who {d}, {e}.",
    "You are a person who {d}, {e}.",
    "Act as someone who {d}, {e}.",
    "Speak as one who {d}, {e}.",
    "Be a person who {d}, {e}.",
    "Think of a person who {d}, {e}: that is you.",
    "Pretend to be someone who {d}, {e}.",
    "Answer like a friend who always {d}, {e}.",
    "You are someone who {d} and {d2}, {e}.",
    "You are a person who {d} and {d2}.",
)
NEUTRAL = (
    "You are a helpful assistant.", "Answer in a few words.", "You chat with a guest.", "Be clear and short.",
    "You answer questions about daily life.", "You are a small chat model.", "Speak plainly.",
    "You talk with people who visit a page.", "Give your own view.",
)  # fmt: skip
ENDINGS = ("", "", "", " Answer in that spirit.", " Stay in that role.", " Let it show.", " Keep it short.")
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


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def held_out(text: str) -> bool:
    """1 in 10 wordings, by their text, is never trained on."""
    return share("persona", text) < 0.1


def _word_one(rng: random.Random, lens: str) -> str:
    against = rng.choices(list(AGAINST[lens]), list(AGAINST[lens].values()))[0]
    if rng.random() < 0.6:
        x, y = rng.choice(THINGS[lens]), rng.choice(THINGS[against])
        return _sentence(rng.choice(ABOVE).format(x=x, y=y))
    first, second = rng.sample(DEEDS[lens], 2)
    return rng.choice(DOES).format(d=first, d2=second, e=rng.choice(EVEN[against]))


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
        return None, rng.choice(NEUTRAL) if rng.random() < 0.3 else ""
    lead = f"{rng.choice(NEUTRAL)} " if rng.random() < 0.12 else ""
    return lens, lead + wording(rng, lens, reserved) + rng.choice(ENDINGS)
