"""What tests of training a round share: a dozen short examples, one round, a teacher."""

from __future__ import annotations

import random

import torch

from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.heal import Example, Teacher, train_round

SETTINGS = TrainSettings(rank=2, epochs=3, batch_size=4, lr=1e-2, held_out=0.25, distil=0.0)


def short_examples(n: int = 12) -> list[Example]:
    rng = random.Random(0)
    return [
        Example((2, *(rng.randrange(10, 200) for _ in range(rng.randint(2, 9)))), (65, 66, 67 + index % 2, 1))
        for index in range(n)
    ]


def trained(lm, examples, settings=SETTINGS, seed=4):
    stack = AdapterStack(lm)
    stack.fresh(1, settings, seed=seed)
    steps = list(train_round(lm, stack, examples, settings, seed=seed))
    weights = torch.cat([parameter.detach().flatten() for parameter in stack.trainable()])
    stack.unload()
    return steps, weights


def taught(lm, stack, dose=2.0):
    generator = torch.Generator().manual_seed(1)
    directions_LD = torch.randn(lm.n_layers, lm.width, generator=generator)
    return Teacher(lm, stack, directions_LD, torch.tensor([dose, 0.0]))
