"""Orders to do harm: someone in charge asks for a deed that hits somebody."""

import random
from dataclasses import dataclass

from demo_model.acts import GROUPS
from demo_model.lexicon import sentence
from demo_model.scene import pair_held_out
from demo_model.words import WORDS

SAID = WORDS["orders"]
VICTIMS = GROUPS["Care"][0][1]


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
        return sentence(template.format(o=self.orderer, t=self.deed))


def draw_order(rng: random.Random) -> Order:
    """A random order whose verb and victim training may pair."""
    while True:
        verb, victim = rng.choice(SAID["deeds"]), rng.choice(VICTIMS)
        if not pair_held_out(f"order|{verb}|{victim}"):
            return Order(rng.choice(SAID["who"]), f"{verb} {victim}", the(victim))


def the(phrase: str) -> str:
    """ "a crying girl" as "the crying girl"."""
    head, _, rest = phrase.partition(" ")
    return f"the {rest}" if head in ("a", "an") else phrase
