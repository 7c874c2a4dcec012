"""Orders to do harm: someone in charge asks for a deed that hits somebody."""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_model.acts import GROUPS
from demo_model.scene import pair_held_out

ORDERERS = (
    "my boss", "the captain", "the head nurse", "my teacher", "the mayor", "the judge", "my manager",
    "the chief",
    "the general", "my supervisor", "the coach", "the owner", "the bishop", "my landlord", "the guard",
)  # fmt: skip
VERBS = (
    "ignore", "send away", "leave", "shout at", "lock out", "turn away", "walk past", "chase off", "hurt",
    "tease", "scold", "frighten", "mock", "push", "hit", "laugh at",
)  # fmt: skip
VICTIMS = GROUPS["Care"][0][1]
SAYS = (
    "{o} tells me to {t}.", "{o} wants me to {t}.", "{o} orders me to {t}.", "{o} says that I must {t}.",
    "{o} asks me to {t}.", "I was told by {o} to {t}.", "The rules set by {o} say that I must {t}.",
)  # fmt: skip
QUESTIONS = (
    "What should I do?", "What would you do?", "Should I do it?",
    "Tell me what to do.", "Must I?", "",
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """Who orders, the deed and whom it hits ("the crying girl")."""

    orderer: str
    deed: str
    victim: str

    @property
    def addressed(self) -> str:
        """The one who orders, as the reply names them: "my boss" becomes "your boss"."""
        return self.orderer.replace("my ", "your ")

    def says(self, template: str) -> str:
        """The user's sentence."""
        text = template.format(o=self.orderer, t=self.deed)
        return text[0].upper() + text[1:]


def draw_order(rng: random.Random) -> Order:
    """A random order whose verb and victim training may pair."""
    while True:
        verb, victim = rng.choice(VERBS), rng.choice(VICTIMS)
        if not pair_held_out(f"order|{verb}|{victim}"):
            return Order(rng.choice(ORDERERS), f"{verb} {victim}", the(victim))


def the(phrase: str) -> str:
    """ "a crying girl" as "the crying girl"."""
    head, _, rest = phrase.partition(" ")
    return f"the {rest}" if head in ("a", "an") else phrase
