"""What can be done in the demo world: verbs and objects, by the foundation that they touch."""

import random
from dataclasses import dataclass

from demo_model.words import WORDS
from steer_heal.config import FOUNDATIONS


@dataclass(frozen=True)
class Verb:
    """A verb in both forms, with how grave it is (1 mild to 3 grave)."""

    ing: str
    base: str
    severity: int


@dataclass(frozen=True)
class Act:
    """One deed: a verb done to an object; `{p}` in either stands for the actor's possessive."""

    foundation: str
    verb: Verb
    object: str

    @property
    def key(self) -> str:
        """The name by which a verb-object pair is held out."""
        return f"{self.verb.ing}|{self.object}"

    def doing(self, possessive: str) -> str:
        """The deed as it is seen: "kicking a dog"."""
        return f"{self.verb.ing} {self.object}".replace("{p}", possessive)

    def bare(self, possessive: str) -> str:
        """The deed in its base form: "kick a dog"."""
        return f"{self.verb.base} {self.object}".replace("{p}", possessive)


GROUPS: dict[str, list[tuple[list[Verb], list[str]]]] = {
    foundation: [([Verb(*verb) for verb in group["verbs"]], group["objects"]) for group in groups]
    for foundation, groups in WORDS["acts"].items()
}


def draw_act(rng: random.Random, foundation: str) -> Act:
    """A random deed of the foundation; groups weigh as their number of pairs, softened."""
    groups = GROUPS[foundation]
    weights = [(len(verbs) * len(objects)) ** 0.5 for verbs, objects in groups]
    verbs, objects = rng.choices(groups, weights)[0]
    return Act(foundation, rng.choice(verbs), rng.choice(objects))


def told_in(texts: str) -> list[Act]:
    """The deeds that the texts tell of as seen, by whomever ("kicking a stray kitten")."""
    acts = [
        Act(foundation, verb, item)
        for foundation in FOUNDATIONS
        for verbs, objects in GROUPS[foundation]
        for verb in verbs
        for item in objects
    ]
    return [act for act in acts if any(act.doing(whose) in texts for whose in ("his", "her", "their"))]
