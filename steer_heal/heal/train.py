"""One round of training.

    loss = w * NLL(answer | prompt) + lam * relu(D(student, reference) - tau)

D is a divergence over the answer's positions, the prompt without steering. With the answer's writer as the
reference and tau = 0 the student imitates it token by token, on every answer: the default, with w = 0. With
the round before or base as the reference, and tau above 0, D is a barrier that holds back the likelihood of
the answers that passed the filter. As they were drawn at a temperature T, NLL is that of softmax(logits / T);
at T = 1 it would teach the student to be as sure as the drawing was.

The reference's states are computed without gradient before the student's forward pass; forward, loss and
backward all happen under the same active adapters. Source of imitation: Hinton et al., 2015,
arXiv:1503.02531; of learning without a prompt what a model does with it: Askell et al., 2021,
arXiv:2112.00861 (context distillation).
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from steer_heal.config import TrainSettings
from steer_heal.heal import losses
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.chunked_loss import Targets, batch_loss, row_losses
from steer_heal.heal.examples import Example, batches, learning_rate, split
from steer_heal.heal.frozen_prefix import FrozenPrefix, first_trained
from steer_heal.heal.lm_head import OutputLayer, hidden_states, labels
from steer_heal.heal.reference import Reference, Steer
from steer_heal.models import LanguageModel
from steer_heal.records import RoundFailed, Stopped

MAX_GRAD_NORM = 1.0

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Objective:
    """What a batch's loss is made of."""

    lm: LanguageModel
    settings: TrainSettings
    output: OutputLayer
    reference: Reference
    frozen: FrozenPrefix
    temperature: float = 1.0

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        stack: AdapterStack,
        settings: TrainSettings,
        steer: Steer = nullcontext,
        temperature: float = 1.0,
    ) -> Self:
        """For one round, the adapter that it trains being on; `steer`, `temperature` as in `train_round`."""
        frozen = FrozenPrefix(lm, first_trained(lm, stack))
        reference = Reference(lm, stack, settings, frozen, steer)
        return cls(lm, settings, OutputLayer(lm), reference, frozen, temperature)

    def targets(self, batch: Sequence[Example], reference_ND: Tensor | None = None) -> Targets:
        """What the batch's hidden states are measured by."""
        labels_N = labels(batch, self.lm.device)
        return Targets(self.output, labels_N, self.settings.divergence, reference_ND, self.temperature)


def loss_of(objective: Objective, batch: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its parts: nll, divergence (both nats per token), barrier."""
    lm, settings = objective.lm, objective.settings
    reference_ND = objective.reference.hidden(batch)
    hidden_ND = hidden_states(lm, batch, objective.frozen)
    likely_N = torch.tensor(
        [float(row.likely) for row in batch for _ in row.completion_ids], device=hidden_ND.device
    )
    targets = objective.targets(batch, reference_ND)
    loss, nll_N, d_N = batch_loss(
        targets, hidden_ND, settings.nll_weight * likely_N, settings.lam, settings.tau
    )
    nll, divergence = nll_N.mean(), d_N.mean()
    barrier = losses.barrier(divergence, settings.lam, settings.tau)
    parts = {"loss": loss, "nll": nll, "divergence": divergence, "barrier": barrier}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


@torch.no_grad()
def held_out_nll(objective: Objective, held: Sequence[Example]) -> float:
    """NLL in nats per token over the held-out completions."""
    lm, size, total, count = objective.lm, objective.settings.batch_size, 0.0, 0
    for start in range(0, len(held), size):
        batch = held[start : start + size]
        hidden_ND = hidden_states(lm, batch, objective.frozen)
        nll_N, _ = row_losses(objective.targets(batch), hidden_ND)
        total += float(nll_N.sum())
        count += len(nll_N)
    return total / count


def train_round(
    lm: LanguageModel,
    stack: AdapterStack,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    steer: Steer = nullcontext,
    temperature: float = 1.0,
    stop: Stop | None = None,
) -> Iterator[dict[str, float]]:
    """Train the adapter that `stack` has in training; yields after every optimizer step.

    Each item holds step, total, loss and its parts, lr, and at each epoch's end held_out_nll. The order of
    the examples and what is held out come from `seed` alone. `steer` makes the writer of the steered answers
    from the round before; it may not act beneath the first block that is trained. `temperature`: at which the
    answers were drawn. Errors: `RoundFailed` without examples or when the loss is not finite; `Stopped`
    between two steps when `stop()` says so.
    """
    examples = [example for example in examples if example.completion_ids]
    if not examples:
        raise RoundFailed("There are no completions to train on.")
    trained, held = split(examples, seed)
    objective = Objective.of(lm, stack, settings, steer, temperature)
    objective.output.check(trained[0])
    parameters = stack.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    total, step = math.ceil(len(trained) / settings.batch_size) * settings.epochs, 0
    order = random.Random(seed)
    for _ in range(settings.epochs):
        epoch = batches(trained, settings.batch_size, order)
        for index, batch in enumerate(epoch):
            if stop and stop():
                raise Stopped
            rate = learning_rate(step, total, settings)
            parts = _step(objective, batch, optimizer, rate)
            step += 1
            if not math.isfinite(parts["loss"]):
                raise RoundFailed(
                    f"The loss is not finite at step {step} of {total}: lower the learning rate."
                )
            if index + 1 == len(epoch) and held:
                parts["held_out_nll"] = held_out_nll(objective, held)
            yield {"step": step, "total": total, "lr": rate, **parts}


def _step(
    objective: Objective, batch: Sequence[Example], optimizer: torch.optim.Optimizer, rate: float
) -> dict[str, float]:
    """One optimizer step; the loss and its parts before it."""
    for settings_of in optimizer.param_groups:
        settings_of["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss, parts = loss_of(objective, batch)
        loss.backward()
    parameters = [parameter for settings_of in optimizer.param_groups for parameter in settings_of["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()
    return parts
