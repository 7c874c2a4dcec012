"""What is trained on, in which order and at which rate."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.config import TrainSettings

HELD_OUT = 0.1
"""Share of the answers that is measured after each epoch and never trained on."""
WARMUP = 0.1
"""Share of the steps over which the learning rate rises."""


LEARNED = 24
"""Tokens of an answer that are learned, its first ones: more prompts carry a trait over to other scenes, more
tokens of an answer do not (docs/reports/healing.md)."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt without steering, an answer, whether steering wrote it, and whether it is made likelier."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    steered: bool = True
    likely: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.completion_ids)


def split(
    examples: Sequence[Example], seed: int, share: float = HELD_OUT
) -> tuple[list[Example], list[Example]]:
    """(trained, held out), the same every time; at least one is trained, none held out of fewer than two.

    `share` is of the distinct ones, and what is held out is trained on in no copy.
    """
    order = list(examples)
    random.Random(seed).shuffle(order)
    distinct = list(dict.fromkeys(order))
    n_held = min(round(share * len(distinct)), max(len(distinct) - 1, 0))
    held = dict.fromkeys(distinct[:n_held])
    return [example for example in order if example not in held], list(held)


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The rate of a step (from 0): linear warm-up over a share of the steps, then a cosine down to 0."""
    warm = math.ceil(WARMUP * total)
    if step < warm:
        return settings.lr * (step + 1) / warm
    left = (step - warm) / max(total - warm, 1)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * left))


def batches(examples: Sequence[Example], size: int, order: random.Random) -> list[list[Example]]:
    """One epoch: shuffled batches of at most `size`, each with its share of every kind of answer.

    Plain prompts are the shorter ones, so batches of like length, which pad less, would hold one kind each.
    Steps then pull to and fro between the trait and base, and how much of the trait a round keeps depends on
    its seed (docs/reports/healing.md).
    """
    dealt = list(examples)
    order.shuffle(dealt)
    dealt.sort(key=lambda example: (example.steered, example.likely))
    n_batches = math.ceil(len(dealt) / size)
    made = [dealt[number::n_batches] for number in range(n_batches)]
    order.shuffle(made)
    return made
