"""Prompts of different lengths as one batch, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_heal.models.files import free
from steer_heal.models.load import LanguageModel

SHARE = 0.25
"""Of the free memory, what a batch may take."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Ids, attention mask (1 for real tokens) and positions from 0, each (B, T)."""

    ids_BT: Tensor
    mask_BT: Tensor
    positions_BT: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The same as a model of transformers takes it."""
        return {"input_ids": self.ids_BT, "attention_mask": self.mask_BT, "position_ids": self.positions_BT}

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


def rows_that_fit(lm: LanguageModel, n_tokens: int, most: int) -> int:
    """How many rows of `n_tokens` with a shadow each may be written at once, from 1 to `most`.

    A row takes keys and values of every layer, and logits and probabilities in float32, twice.
    """
    heads = getattr(lm.config, "num_key_value_heads", None) or lm.config.num_attention_heads
    width = getattr(lm.config, "head_dim", None) or lm.config.hidden_size // lm.config.num_attention_heads
    cache = 2 * lm.n_layers * heads * width * n_tokens * lm.dtype.itemsize
    row = 2 * (cache + 4 * 4 * lm.config.vocab_size)
    return max(1, min(most, int(SHARE * free(lm.info.device)) // row))
