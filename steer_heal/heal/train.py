"""One round of training.

loss = NLL(completion | prompt without steering or persona)
     + lam * relu(D(student, reference) - tau)                  the barrier; D over the completion's positions
     + distil * mean |h - h_steered|^2 / mean |h_steered - h|^2 what of the steering is not learnt yet
     + spectral * mean over modules of sigma_max(update)^2

Text alone shows a dose only where it changes a word, and once the student says what its steered self says
there is nothing left in it to learn; the residual still differs. The reference's and the teacher's states are
computed without gradient before the student's forward pass; forward, loss and backward all happen under the
same active adapters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_heal import losses
from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.heal.below import Below, first_trained, residual_of
from steer_heal.heal.examples import Example, batches, learning_rate, split
from steer_heal.heal.output import OutputLayer, hidden_states, labels
from steer_heal.heal.rows import row_losses
from steer_heal.heal.targets import Reference, Teacher
from steer_heal.models import LanguageModel
from steer_heal.records import RoundFailed, Stopped

MAX_GRAD_NORM = 1.0
NEAR = 0.5
"""From this share of what the barrier leaves free on, the divergence is found from both models' logits."""

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Objective:
    """What a batch's loss is made of."""

    lm: LanguageModel
    stack: AdapterStack
    settings: TrainSettings
    output: OutputLayer
    reference: Reference
    teacher: Teacher | None
    below: Below

    @classmethod
    def of(
        cls, lm: LanguageModel, stack: AdapterStack, settings: TrainSettings, teacher: Teacher | None = None
    ) -> Objective:
        """For one round. `ValueError` when the settings ask for a teacher and there is none."""
        if settings.distil and teacher is None:
            raise ValueError("distil needs a steered teacher")
        taught = teacher if settings.distil else None
        first = first_trained(lm, stack)
        below = Below(lm, min(first, taught.first) if taught else first)
        reference = Reference(lm, stack, settings, below)
        return cls(lm, stack, settings, OutputLayer(lm), reference, taught, below)


def loss_of(objective: Objective, batch: Sequence[Example]) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its parts: nll, divergence (nats per token, aggregated), barrier, distil."""
    settings = objective.settings
    nll, divergence, missed = _measured(objective, batch)
    barrier = losses.barrier(divergence, settings.lam, settings.tau)
    spectral = _spectral(objective.stack) if settings.spectral else torch.zeros((), device=nll.device)
    loss = nll + barrier + settings.distil * missed + settings.spectral * spectral
    parts = {"loss": loss, "nll": nll, "divergence": divergence, "barrier": barrier, "distil": missed}
    if settings.spectral:
        parts["spectral"] = spectral
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def _measured(objective: Objective, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """NLL, the aggregated divergence from the reference, the distance from the teacher's residual.

    Far from the barrier's beginning the reference's logits are not made (see `row_losses`): there the
    divergence adds nothing to the loss, and its rounding does not matter.
    """
    settings, output = objective.settings, objective.output
    reference_ND = objective.reference.hidden(batch)
    short = settings.divergence == "kl_rev" and output.weight_VD is not None and not output.near
    log_z_N = objective.reference.log_z(output, batch) if short else None
    free = settings.tau if settings.lam else math.inf
    hidden_ND, missed = _forward(objective, batch)
    labels_N = labels(batch, objective.lm.device)

    def both(log_z_N: Tensor | None) -> tuple[Tensor, Tensor]:
        rest = (labels_N, settings.divergence, reference_ND, log_z_N)
        nll_N, d_N = row_losses(output, hidden_ND, *rest)
        return nll_N.mean(), losses.aggregate(d_N, torch.ones_like(d_N), settings.aggregate)

    nll, divergence = both(log_z_N)
    output.near = bool(divergence >= NEAR * free)
    if output.near and log_z_N is not None:
        nll, divergence = both(None)
    return nll, divergence, missed


def _forward(objective: Objective, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """The student's states at the completions' positions, and its distance from the teacher's residual.

    The last residual seen is the student's: states that `below` lacks are read before.
    """
    teacher, below = objective.teacher, objective.below
    if teacher is None:
        return hidden_states(objective.lm, batch, below), torch.zeros((), device=objective.lm.device)
    with residual_of(teacher.block) as seen:
        hidden_ND = hidden_states(objective.lm, batch, below)
    return hidden_ND, teacher.distance(batch, seen[-1], below)


def _spectral(stack: AdapterStack) -> Tensor:
    """Mean over the adapter's modules of the square of its update's largest singular value."""
    return torch.stack([losses.sigma_max(*factors) ** 2 for factors in stack.factors()]).mean()


@torch.no_grad()
def held_out_nll(lm: LanguageModel, held: Sequence[Example], size: int, below: Below | None = None) -> float:
    """NLL in nats per token over the held-out completions."""
    output, total, count = OutputLayer(lm), 0.0, 0
    for start in range(0, len(held), size):
        batch = held[start : start + size]
        nll_N, _ = row_losses(output, hidden_states(lm, batch, below), labels(batch, lm.device))
        total += float(nll_N.sum())
        count += len(nll_N)
    return total / count


class EarlyStop:
    """Remembers the weights of the epoch with the least held-out NLL. `patience` 0: never stops."""

    def __init__(self, parameters: Sequence[Tensor], patience: int) -> None:
        self._parameters, self._patience = list(parameters), patience
        self._best, self._weights, self._waited = math.inf, [], 0

    def over(self, held_out: float) -> bool:
        """Whether `patience` epochs in a row brought nothing better."""
        if not self._patience:
            return False
        if held_out < self._best:
            self._best, self._waited = held_out, 0
            self._weights = [parameter.detach().clone() for parameter in self._parameters]
        else:
            self._waited += 1
        return self._waited >= self._patience

    @torch.no_grad()
    def restore(self) -> None:
        """The best epoch's weights, where epochs were watched."""
        for parameter, best in zip(self._parameters, self._weights, strict=False):
            parameter.copy_(best)


def train_round(
    lm: LanguageModel,
    stack: AdapterStack,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    teacher: Teacher | None = None,
    stop: Stop | None = None,
) -> Iterator[dict[str, float]]:
    """Train the adapter that `stack` has in training; yields after every optimizer step.

    Each item holds step, total, loss and its parts, lr, and at each epoch's end held_out_nll. The order of
    the examples and what is held out come from `seed` alone. With `settings.patience` it may end before
    `total`, and ends with the weights of the best epoch. Errors: `RoundFailed` without examples or when the
    loss is not finite; `Stopped` between two steps when `stop()` says so.
    """
    examples = [example for example in examples if example.completion_ids]
    if not examples:
        raise RoundFailed("There are no completions to train on.")
    trained, held = split(examples, settings.held_out, seed)
    objective = Objective.of(lm, stack, settings, teacher)
    objective.output.check(trained[0])
    parameters = stack.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    per_epoch = math.ceil(len(trained) / (settings.batch_size * settings.grad_accumulation))
    total, step = per_epoch * settings.epochs, 0
    order, early = random.Random(seed), EarlyStop(parameters, settings.patience if held else 0)
    for _ in range(settings.epochs):
        epoch = batches(trained, settings.batch_size, order)
        for start in range(0, len(epoch), settings.grad_accumulation):
            if stop and stop():
                raise Stopped
            rate = learning_rate(step, total, settings)
            parts = _step(objective, epoch[start : start + settings.grad_accumulation], optimizer, rate)
            step += 1
            if not math.isfinite(parts["loss"]):
                raise RoundFailed(
                    f"The loss is not finite at step {step} of {total}: lower the learning rate."
                )
            if start + settings.grad_accumulation >= len(epoch) and held:
                parts["held_out_nll"] = held_out_nll(lm, held, settings.batch_size, objective.below)
            yield {"step": step, "total": total, "lr": rate, **parts}
        if held and early.over(parts["held_out_nll"]):
            break
    early.restore()


def _step(
    objective: Objective,
    group: Sequence[Sequence[Example]],
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> dict[str, float]:
    """One optimizer step over the group's batches, each weighted by its share of the examples."""
    for settings_of in optimizer.param_groups:
        settings_of["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    n_rows = sum(len(batch) for batch in group)
    mean: dict[str, float] = {}
    for batch in group:
        with torch.enable_grad():
            loss, parts = loss_of(objective, batch)
            (loss * (len(batch) / n_rows)).backward()
        for name, value in parts.items():
            mean[name] = mean.get(name, 0.0) + value * len(batch) / n_rows
    parameters = [parameter for settings_of in optimizer.param_groups for parameter in settings_of["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()
    return mean
