"""What tests of trained rounds share: a dozen short examples, one round, and a run without training."""

import random
from pathlib import Path
from typing import Any

import torch

from steer_heal.config import HealSettings, TrainSettings, heal_settings
from steer_heal.heal import Example, train_round
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import LanguageModel
from steer_heal.runs.jobs import LocalProcesses

SETTINGS = TrainSettings(
    divergence="kl_rev", reference="prev", likelihood=1.0, lam=0.3, tau=1.0,
    rank=2, epochs=3, batch_size=4, lr=1e-2,
)  # fmt: skip


OPEN = {
    "max_perplexity_ratio": 1e9,
    "min_relevance_ratio": -1e9,
    "max_repetition": 1.0,
    "min_variety": 0.0,
}
"""Filter settings that keep every answer."""


def tiny_run(**more: Any) -> HealSettings:
    """Settings of a run of a second or two, some of them others."""
    values = {
        "model": "tiny",
        "rounds": 2,
        "band": (0.3, 0.7),
        "filter": OPEN,
        "data": {
            "n_answers": 8, "n_plain": 0, "max_new_tokens": 8, "min_kept": 2, "alphas": (1.0, 1.5, 2.0, 2.5)
        },
        "train": {"epochs": 2, "batch_size": 4, "rank": 2},
        "extract": {"n_contexts": 3},
        "calibrate": {"n_prompts": 2, "n_tokens": 4},
        "evaluate": {"frame": "choice", "n_vignettes": 3, "n_answers": 3, "controls": 0},
    }  # fmt: skip
    return heal_settings(**{**values, **more})


def shake(stack: AdapterStack, seed: int = 0, size: float = 0.05) -> None:
    """Give the adapter in training weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stack.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def healed(
    lm: LanguageModel,
    rounds: int = 1,
    settings: TrainSettings = SETTINGS,
    *,
    size: float = 0.05,
    folder: Path | None = None,
) -> AdapterStack:
    """So many folded rounds, whose adapters were shaken instead of trained; saved where there is a folder."""
    stack = AdapterStack(lm)
    for number in range(1, rounds + 1):
        stack.fresh(number, settings, seed=number)
        shake(stack, number, size)
        stack.fold()
        if folder is not None:
            stack.save(number, folder)
    return stack


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


def shaken_run(lm: LanguageModel, runs: Path, model: str = "", rounds: int = 2) -> str:
    """A run of so many rounds, whose adapters were shaken instead of trained; its id."""
    folder = LocalProcesses(runs).create(heal_settings(model=model or lm.name, rounds=rounds))
    healed(lm, rounds, size=0.3, folder=folder.path / "adapters").unload()
    return folder.run_id
