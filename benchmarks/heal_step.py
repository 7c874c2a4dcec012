"""How far one step of training moves the weights of three models: `python -m benchmarks.heal_step`.

From 3 M to 1 B parameters, at the default learning rate: the rule that the rate is given by. What a step
costs against the straightforward way: `python -m benchmarks.forward --only training`.
"""

from __future__ import annotations

import math
from statistics import median

import torch
from peft.tuners.lora import Linear

from steer_heal.config import DEFAULT_BAND, DEMO, SMOLLM2, TrainSettings
from steer_heal.heal import Example, Objective, loss_of
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import LanguageModel, band_layers, load
from tests.tiny import gemma_shape

N_TOKENS = 16
"""Of the prompt, and of the completion."""


def example(lm: LanguageModel) -> Example:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(10, lm.config.vocab_size, (2 * N_TOKENS,), generator=generator).tolist()
    return Example(tuple(ids[:N_TOKENS]), tuple(ids[N_TOKENS:]))


def main() -> None:
    """The size of AdamW's first step on the weights that the LoRA changes, relative to them, for each model.

    B starts at 0 and every entry of it moves by lr, A's entries have variance 1 / (3 width): so
    |dW| / |W| = 2 lr sqrt(rank / 3) / (|W| / sqrt(rows)), whatever the width: |W| / sqrt(rows), the norm
    of a row, is about 1 where the weights have variance 1 / width.
    """
    settings = TrainSettings()
    predicted = 2 * settings.lr * math.sqrt(settings.rank / 3)
    print(f"lr {settings.lr:g}, rank {settings.rank}: |dW| / sqrt(rows) should be {predicted:.2e}")
    likely = settings.model_copy(update={"divergence": "nll", "likelihood": 1.0})
    for name, lm in (
        ("demo", load(DEMO)),
        ("smollm2", load(SMOLLM2)),
        ("gemma's shape, 5 layers", gemma_shape(torch.float32, 5)),
    ):
        stack = AdapterStack(lm)
        stack.fresh(1, settings, seed=0, layers=band_layers(lm.n_layers, DEFAULT_BAND))
        optimizer = torch.optim.AdamW(stack.trainable(), lr=settings.lr, weight_decay=settings.weight_decay)
        with torch.enable_grad():
            loss_of(Objective.of(lm, stack, likely), [example(lm)])[0].backward()
        optimizer.step()
        changes, relative = [], []
        for module in lm.model.modules():
            if isinstance(module, Linear):
                weight, change = module.weight, module.get_delta_weight(module.active_adapters[0])
                changes.append(change.norm().item() / math.sqrt(len(weight)))
                relative.append((change.norm() / weight.norm()).item())
        stack.unload()
        print(f"{name}: |dW| / sqrt(rows) {median(changes):.2e}, |dW| / |W| {median(relative):.2e}")


if __name__ == "__main__":
    main()
