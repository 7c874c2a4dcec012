"""Which forward pass reads the tokens of a batch: decided once for each answer, and told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from steer_heal.generate.lean.known import why_not
from steer_heal.generate.lean.reader import LeanReader
from steer_heal.generate.plain import PlainReader
from steer_heal.generate.rows import Lane
from steer_heal.generate.store import PrefixStore
from steer_heal.models import LanguageModel
from steer_heal.vectors.steering import Operator


class Reader(Protocol):
    """The lanes of a batch after what they have read so far."""

    @property
    def logits_BV(self) -> Tensor:
        """Of each lane's next token."""
        ...

    def keep(self, kept: Sequence[int]) -> None:
        """The lanes that stay, by their numbers here and in their new order; one named twice becomes two."""
        ...

    def advance(self, ids: Sequence[int]) -> None:
        """Read one token a lane; `logits_BV` are then those of the next."""
        ...


def reader(
    lm: LanguageModel,
    lanes: Sequence[Lane],
    directions_LD: Tensor | Operator,
    room: int,
    store: PrefixStore | None = None,
) -> Reader:
    """The lanes' prompts, read; `room` tokens can follow."""
    with torch.inference_mode():
        if isinstance(directions_LD, Tensor) and not why_not(lm):
            return LeanReader(lm, lanes, directions_LD, room, store)
        return PlainReader(lm, lanes, directions_LD, room, store)


def forward_used(lm: LanguageModel, directions_LD: Tensor | Operator) -> str:
    """Which forward pass `decode` takes for this model as it stands, and why: one line for a person."""
    if not isinstance(directions_LD, Tensor):
        return "transformers' forward: this method steers by hooks of its own"
    reason = why_not(lm)
    return f"transformers' forward: {reason}" if reason else "lean forward"
