"""A scene: who does what, as a sentence in the third, second and first person, and what is held out."""

import random
import zlib
from dataclasses import dataclass

from demo_model.acts import Act, draw_act
from demo_model.lexicon import SELF_TAILS, Actor, draw_actor, draw_setting


@dataclass(frozen=True)
class Scene:
    """An actor, a deed and the rest of the sentence (place and tail, with a leading space or empty)."""

    actor: Actor
    act: Act
    rest: str = ""

    def doing(self) -> str:
        """The deed as it is seen: "kicking a dog"."""
        return self.act.doing(self.actor.possessive)

    def bare(self, possessive: str = "your") -> str:
        """The deed in its base form: "kick a dog"."""
        return self.act.bare(possessive)

    def span(self) -> str:
        """What a reply restates: "a boy kicking a dog"."""
        return f"{self.actor.phrase} {self.doing()}"

    def seen(self) -> str:
        """The third-person vignette."""
        return f"You see {self.span()}{self.rest}."

    def done(self, subject: str = "You") -> str:
        """The vignette as the reader's own deed ("You ...") or the speaker's ("I ...")."""
        rest = self.rest
        for old, new in SELF_TAILS.items():
            rest = rest.replace(old, new)
        return f"{subject} {self.bare('your' if subject == 'You' else 'my')}{rest}."


def share(kind: str, name: str) -> float:
    """A stable number in [0, 1) for a name: the same on every machine and run."""
    return zlib.crc32(f"{kind}:{name}".encode()) / 2**32


def pair_held_out(key: str) -> bool:
    """Whether a verb-object pair (1 in 8) is never used in training."""
    return share("pair", key) < 1 / 8


class Casting:
    """Draws scenes that training may use; the deeds that are `reserved`, by their keys, are none of them."""

    def __init__(self, reserved: frozenset[str]):
        self.reserved = reserved

    def allows(self, scene: Scene) -> bool:
        """Whether training may use the scene: 1 in 10 pairs of actor and verb are held out too."""
        key, actor_and_verb = scene.act.key, f"{scene.actor.noun}|{scene.act.verb.ing}"
        held_out = pair_held_out(key) or share("actor", actor_and_verb) < 1 / 10
        return key not in self.reserved and not held_out

    def draw(self, rng: random.Random, foundation: str) -> Scene:
        """A random scene of the foundation that is allowed."""
        while True:
            scene = Scene(draw_actor(rng), draw_act(rng, foundation), "".join(draw_setting(rng)))
            if self.allows(scene):
                return scene
