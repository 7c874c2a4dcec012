"""Prompts of different lengths as one batch, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Padded:
    """Ids, attention mask (1 for real tokens) and positions from 0, each (B, T)."""

    ids_BT: Tensor
    mask_BT: Tensor
    positions_BT: Tensor

    @property
    def full(self) -> bool:
        """Whether no row is padded."""
        return bool(self.mask_BT.all())


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> Padded:
    """The prompts as rows that all end in the last column; padding has position 0 and mask 0."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    mask_BT = torch.tensor(mask, device=device)
    return Padded(torch.tensor(ids, device=device), mask_BT, (mask_BT.cumsum(dim=1) - 1).clamp(min=0))
