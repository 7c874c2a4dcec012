"""How well the bundled model talks: fluency, right restatement of unseen scenes, small talk."""

from __future__ import annotations

import random
import re

import torch

from demo_model import everyday
from demo_model.acts import FOUNDATIONS, GROUPS
from demo_model.dilemmas import said_in_orders
from demo_model.lexicon import NOUNS
from demo_model.scene import Casting, Scene
from demo_model.vignettes import own_scenes
from steer_heal.config import SampleSettings, build
from steer_heal.evaluate.text_health import repetition
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, user
from steer_heal.records import Completion

ASKS = ("What do you think?", "How do you see it?", "Tell me what you think.")
# What an answer to each kind of small talk must hold, any of these.
HOLDS = {
    "hello": ("hello", "hi!"),
    "name": ("demo model",),
    "how": ("i am well", "i am fine", "i feel fine"),
    "thanks": ("welcome",),
    "bye": ("goodbye", "bye!"),
    "joke": ("clock", "wave"),
    "do": ("chat", "talk"),
}
_DEEDS = {verb.ing.split()[0] for groups in GROUPS.values() for verbs, _ in groups for verb in verbs}
_ACTOR = re.compile(rf"\ban? (?:\w+ )?(?:{'|'.join(NOUNS)})\b")


def answers(lm: LanguageModel, prompts: list[str]) -> list[Completion]:
    """The model's answers with its own sampling settings, seeded."""
    rows = [Row(prompt_ids=tuple(lm.encode_chat([user(prompt)]))) for prompt in prompts]
    nothing_LD = torch.zeros(lm.n_layers, lm.width)
    return complete(lm, rows, nothing_LD, build(SampleSettings, max_new_tokens=80))


def restates(text: str) -> bool:
    """Whether an answer names any actor or deed of the lexicon."""
    return bool(_ACTOR.search(text)) or bool(_DEEDS & set(re.findall(r"[a-z]+", text.lower())))


def names_rightly(scene: Scene, text: str) -> bool:
    """Whether an answer names the scene's actor and deed, word for word."""
    return scene.span() in text


def restating(lm: LanguageModel, count: int = 420) -> tuple[float, float]:
    """Share of answers that end and do not loop; share of restatements that are right."""
    rng = random.Random(5)
    casting = Casting(frozenset(scene.act.key for _, scene in own_scenes()), unseen=True)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = casting.draw(rng, FOUNDATIONS[len(scenes) % len(FOUNDATIONS)])
        if not said_in_orders(scene.act):
            scenes.append(scene)
    said = answers(lm, [f"{scene.seen()} {rng.choice(ASKS)}" for scene in scenes])
    fluent = sum(answer.ended and repetition(answer.text) <= 0.3 for answer in said) / count
    told = [(scene, answer.text) for scene, answer in zip(scenes, said, strict=True) if restates(answer.text)]
    return fluent, sum(names_rightly(scene, text) for scene, text in told) / max(1, len(told))


def small_talk(lm: LanguageModel) -> float:
    """Share of small talk that is answered with what belongs there."""
    asked = [(kind, prompt) for kind, (prompts, _) in everyday.SMALLTALK.items() for prompt in prompts]
    said = answers(lm, [prompt for _, prompt in asked])
    pairs = zip(asked, said, strict=True)
    right = [any(word in answer.text.lower() for word in HOLDS[kind]) for (kind, _), answer in pairs]
    return sum(right) / len(right)
