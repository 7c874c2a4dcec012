"""Train one round: the student learns to say, without steering, what steering made it say.

loss = NLL(completion | prompt without steering or persona) + lam * relu(D(student, reference) - tau), D over
the completion's positions. The reference's logits are computed before the student's forward pass, with no
gradient; forward, loss and backward all happen under the same active adapters.
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
from steer_heal.models import LanguageModel, left_pad
from steer_heal.records import RoundFailed, Stopped

MAX_GRAD_NORM = 1.0
KEPT_REFERENCE_BYTES = 1 << 28
"""Reference logits up to this size are computed once; larger ones again at every step."""

Stop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Example:
    """What is trained on: a prompt without steering or persona, and the completion that passed the filter."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(trained, held out), the same every time; at least one is trained, none held out of fewer than two."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    n_held = min(round(share * len(order)), max(len(order) - 1, 0))
    return order[n_held:], order[:n_held]


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The rate of a step (from 0): linear warm-up over a share of the steps, then a cosine down to 0."""
    warm = math.ceil(settings.warmup * total)
    if step < warm:
        return settings.lr * (step + 1) / warm
    left = (step - warm) / max(total - warm, 1)
    return settings.lr * 0.5 * (1.0 + math.cos(math.pi * left))


def batches(examples: Sequence[Example], size: int, order: random.Random) -> list[list[Example]]:
    """One epoch: shuffled batches, of examples of like length so that little is padded."""
    shuffled = list(examples)
    order.shuffle(shuffled)
    shuffled.sort(key=lambda example: example.length // 16)
    made = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    order.shuffle(made)
    return made


def completion_logits(lm: LanguageModel, batch: Sequence[Example]) -> Tensor:
    """Logits (B, T, V) that predict the last T tokens of the rows, T the longest completion of the batch."""
    padded = left_pad([(*row.prompt_ids, *row.completion_ids) for row in batch], lm.pad_id, lm.device)
    longest = max(len(row.completion_ids) for row in batch)
    out = lm.model(
        input_ids=padded.ids_BT,
        attention_mask=padded.mask_BT,
        position_ids=padded.positions_BT,
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    return out.logits[:, :-1]


def completion_labels(batch: Sequence[Example], device: torch.device) -> Tensor:
    """Labels (B, T) for `completion_logits`: the completion's tokens, `IGNORE` before them."""
    longest = max(len(row.completion_ids) for row in batch)
    rows = [[losses.IGNORE] * (longest - len(row.completion_ids)) + list(row.completion_ids) for row in batch]
    return torch.tensor(rows, device=device)


class Reference:
    """The reference's logits for a batch: the folded history's ("prev") or the base's ("base")."""

    def __init__(
        self, lm: LanguageModel, stack: AdapterStack, settings: TrainSettings, n_tokens: int
    ) -> None:
        self._lm, self._which, self._needed = lm, settings.reference, settings.divergence != "nll"
        self._stack = stack
        size = n_tokens * lm.config.vocab_size * lm.dtype.itemsize
        self._kept: dict[Example, Tensor] | None = {} if size <= KEPT_REFERENCE_BYTES else None

    @torch.no_grad()
    def logits(self, batch: Sequence[Example]) -> Tensor | None:
        """(B, T, V) aligned with `completion_logits`; None where the loss has no divergence."""
        if not self._needed:
            return None
        kept = self._kept
        if kept is not None and all(row in kept for row in batch):
            longest = max(len(row.completion_ids) for row in batch)
            rows = [kept[row] for row in batch]
            return torch.stack([torch.nn.functional.pad(r, (0, 0, longest - len(r), 0)) for r in rows])
        with self._stack.off() if self._which == "base" else self._stack.previous():
            logits_BTV = completion_logits(self._lm, batch)
        if kept is not None:
            kept.update(
                (row, logits_TV[-len(row.completion_ids) :].clone())
                for row, logits_TV in zip(batch, logits_BTV, strict=True)
            )
        return logits_BTV


def loss_of(
    lm: LanguageModel, batch: Sequence[Example], reference_BTV: Tensor | None, settings: TrainSettings
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and its parts: nll, divergence (nats per token, aggregated), barrier."""
    logits_BTV = completion_logits(lm, batch)
    labels_BT = completion_labels(batch, logits_BTV.device)
    nll = losses.nll(logits_BTV, labels_BT)
    divergence = barrier = torch.zeros((), device=nll.device)
    if reference_BTV is not None:
        mask_BT = labels_BT != losses.IGNORE
        d_N = losses.DIVERGENCES[settings.divergence](logits_BTV[mask_BT], reference_BTV[mask_BT])
        divergence = losses.aggregate(d_N, torch.ones_like(d_N), settings.aggregate)
        barrier = losses.barrier(divergence, settings.lam, settings.tau)
    loss = nll + barrier
    parts = {"loss": loss, "nll": nll, "divergence": divergence, "barrier": barrier}
    return loss, {name: float(value.detach()) for name, value in parts.items()}


@torch.no_grad()
def held_out_nll(lm: LanguageModel, held: Sequence[Example], size: int) -> float:
    """NLL in nats per token over the held-out completions."""
    total, count = 0.0, 0
    for start in range(0, len(held), size):
        batch = held[start : start + size]
        n_tokens = sum(len(row.completion_ids) for row in batch)
        labels_BT = completion_labels(batch, lm.device)
        total += float(losses.nll(completion_logits(lm, batch), labels_BT)) * n_tokens
        count += n_tokens
    return total / count


def train_round(
    lm: LanguageModel,
    stack: AdapterStack,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    seed: int,
    stop: Stop | None = None,
) -> Iterator[dict[str, float]]:
    """Train the adapter that `stack` has in training; yields after every optimizer step.

    Each item holds step, total, loss, nll, divergence, barrier, lr, and at each epoch's end held_out_nll. The
    order of the examples and what is held out come from `seed` alone. Errors: `RoundFailed` without
    examples or when the loss is not finite; `Stopped` between two steps when `stop()` says so.
    """
    examples = [example for example in examples if example.completion_ids]
    if not examples:
        raise RoundFailed("There are no completions to train on.")
    trained, held = split(examples, settings.held_out, seed)
    parameters = stack.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    reference = Reference(lm, stack, settings, sum(len(row.completion_ids) for row in trained))
    group = settings.batch_size * settings.grad_accumulation
    per_epoch = math.ceil(len(trained) / group)
    total, step = per_epoch * settings.epochs, 0
    order = random.Random(seed)
    for _ in range(settings.epochs):
        epoch = batches(trained, settings.batch_size, order)
        for start in range(0, len(epoch), settings.grad_accumulation):
            if stop and stop():
                raise Stopped
            rate = learning_rate(step, total, settings)
            parts = _step(
                lm, epoch[start : start + settings.grad_accumulation], reference, optimizer, rate, settings
            )
            step += 1
            if not math.isfinite(parts["loss"]):
                raise RoundFailed(
                    f"The loss is not finite at step {step} of {total}: lower the learning rate."
                )
            if start + settings.grad_accumulation >= len(epoch) and held:
                parts["held_out_nll"] = held_out_nll(lm, held, settings.batch_size)
            yield {"step": step, "total": total, "lr": rate, **parts}


def _step(
    lm: LanguageModel,
    group: Sequence[Sequence[Example]],
    reference: Reference,
    optimizer: torch.optim.Optimizer,
    rate: float,
    settings: TrainSettings,
) -> dict[str, float]:
    """One optimizer step over the group's batches, each weighted by its share of the examples."""
    for settings_of in optimizer.param_groups:
        settings_of["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    n_rows = sum(len(batch) for batch in group)
    mean: dict[str, float] = {}
    for batch in group:
        reference_BTV = reference.logits(batch)
        with torch.enable_grad():
            loss, parts = loss_of(lm, batch, reference_BTV, settings)
            (loss * (len(batch) / n_rows)).backward()
        for name, value in parts.items():
            mean[name] = mean.get(name, 0.0) + value * len(batch) / n_rows
    parameters = [parameter for settings_of in optimizer.param_groups for parameter in settings_of["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()
    return mean
