"""The states that predict the completions, and the output layer over them, some positions at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from steer_heal.config import SettingsError
from steer_heal.heal.examples import Example
from steer_heal.heal.frozen_prefix import FrozenPrefix
from steer_heal.models import LanguageModel, left_pad

CHUNK_BYTES = 256 << 20
"""All logits of a chunk, both models' where both are made, take at most this much in the model's type."""
BLOCK = 1 << 18
"""Logits in float32 at a time: small blocks are used again, large ones are new memory."""


class OutputLayer:
    """Final hidden states to logits, as the model does it: its head, then its soft cap where it has one."""

    def __init__(self, lm: LanguageModel) -> None:
        head = lm.model.get_output_embeddings()
        if head is None:
            raise SettingsError(f"{lm.name} has no output layer to train through: choose another model.")
        self._head = head
        self._cap = getattr(lm.config, "final_logit_softcapping", None)
        self._lm = lm
        self.chunk = max(1, CHUNK_BYTES // (lm.dtype.itemsize * lm.config.vocab_size))
        """Positions whose logits exist at a time; half as many where the reference's do too."""

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Logits (N, V) in the model's type."""
        logits_NV = self._head(hidden_ND)
        return logits_NV if self._cap is None else self._cap * torch.tanh(logits_NV / self._cap)

    @torch.no_grad()
    def check(self, example: Example) -> None:
        """`SettingsError` where the model computes its logits in another way than this does."""
        ids_BT = torch.tensor([example.ids[:8]], device=self._lm.device)
        whole = self._lm.model(input_ids=ids_BT, use_cache=False, logits_to_keep=1).logits[0].float()
        ours = self(_hidden(self._lm, input_ids=ids_BT)[0, -1:]).float()
        if (ours - whole).abs().max() > 1e-2 * whole.abs().max():
            raise SettingsError(
                f"{self._lm.name} makes its logits in a way that training does not know: choose another."
            )


def _hidden(lm: LanguageModel, **inputs: Any) -> Tensor:
    """Hidden states (B, T, D) after the last norm."""
    return lm.model.base_model(**inputs, use_cache=False).last_hidden_state


@contextmanager
def mixed_precision(lm: LanguageModel) -> Iterator[None]:
    """In a bfloat16 model the LoRA's products are in bfloat16 too; its weights, their gradients and what the
    optimizer keeps stay float32. peft by itself makes everything that goes into a LoRA or comes out of it
    float32: a step at gemma's shape then takes a quarter longer and keeps a quarter more memory
    (docs/reports/healing.md, "A step at gemma's shape"). Nothing changes in a model of another type.
    """
    if lm.dtype != torch.bfloat16:
        yield
        return
    with torch.autocast(lm.device.type, lm.dtype), disable_input_dtype_casting(lm.model):
        yield


def hidden_states(lm: LanguageModel, batch: Sequence[Example], frozen: FrozenPrefix | None = None) -> Tensor:
    """The states (N, D) that predict the completions' tokens, row after row, N their number in the batch.

    `frozen`: states kept from earlier passes, to begin at.
    """
    padded = left_pad([row.ids for row in batch], lm.pad_id, lm.device)
    with mixed_precision(lm), nullcontext() if frozen is None else frozen.entered(batch):
        whole_BTD = _hidden(
            lm, input_ids=padded.ids_BT, attention_mask=padded.mask_BT, position_ids=padded.positions_BT
        )
    rows = zip(batch, whole_BTD, strict=True)
    return torch.cat([hidden_TD[-len(row.completion_ids) - 1 : -1] for row, hidden_TD in rows])


def labels(batch: Sequence[Example], device: torch.device) -> Tensor:
    """The tokens (N,) that `hidden_states` predict."""
    return torch.tensor([token for row in batch for token in row.completion_ids], device=device)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover n rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def blocks(logits_CV: Tensor) -> Iterator[slice]:
    """Rows that are in float32 together."""
    return chunks(len(logits_CV), max(1, BLOCK // logits_CV.shape[1]))
