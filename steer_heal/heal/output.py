"""The output layer a few positions at a time, so that no run ever holds the logits of a whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_heal import losses
from steer_heal.config import SettingsError
from steer_heal.heal.examples import Example
from steer_heal.models import LanguageModel, left_pad

CHUNK_BYTES = 64 << 20
"""Float32 logits of one chunk take at most this much."""

Score = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class OutputLayer:
    """Final hidden states to logits, as the model does it: its head, then its soft cap where it has one."""

    def __init__(self, lm: LanguageModel) -> None:
        head = lm.model.get_output_embeddings()
        if head is None:
            raise SettingsError(f"{lm.name} has no output layer to train through: choose another model.")
        self._head = head
        self._cap = getattr(lm.config, "final_logit_softcapping", None)
        self._lm = lm
        self.chunk = max(1, CHUNK_BYTES // (4 * lm.config.vocab_size))
        """Positions whose logits exist at a time."""

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


def hidden_states(lm: LanguageModel, batch: Sequence[Example]) -> Tensor:
    """The states (N, D) that predict the completions' tokens, row after row, N their number in the batch."""
    padded = left_pad([row.ids for row in batch], lm.pad_id, lm.device)
    whole_BTD = _hidden(
        lm, input_ids=padded.ids_BT, attention_mask=padded.mask_BT, position_ids=padded.positions_BT
    )
    rows = zip(batch, whole_BTD, strict=True)
    return torch.cat([hidden_TD[-len(row.completion_ids) - 1 : -1] for row, hidden_TD in rows])


def labels(batch: Sequence[Example], device: torch.device) -> Tensor:
    """The tokens (N,) that `hidden_states` predict."""
    return torch.tensor([token for row in batch for token in row.completion_ids], device=device)


def row_losses(
    output: OutputLayer,
    hidden_ND: Tensor,
    labels_N: Tensor,
    divergence: str = "nll",
    reference_ND: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(-log p(label), divergence from the reference) of each position, float32 (N,), in nats.

    `reference_ND`: the reference's hidden states at the same positions; without them, or for "nll", the
    divergence is 0. Gradients reach `hidden_ND` alone.
    """

    def score(hidden_CD: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        logits_CV = output(hidden_CD)
        nll_C = losses.nll_rows(logits_CV, labels_N[rows])
        if reference_ND is None or divergence == "nll":
            return nll_C, torch.zeros_like(nll_C)
        with torch.no_grad():
            reference_CV = output(reference_ND[rows])
        return nll_C, losses.DIVERGENCES[divergence](logits_CV, reference_CV)

    return _Chunked.apply(hidden_ND, score, output.chunk)  # pyright: ignore[reportReturnType]


class _Chunked(torch.autograd.Function):
    """Two losses of each row from that row's hidden state, `chunk` rows at a time.

    The first one's gradient is found on the way, the second one's when it turns out to be asked for: most
    often the barrier is silent and it never is.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, score: Score, chunk: int) -> tuple[Tensor, Tensor]:
        n = len(hidden_ND)
        first_N, second_N = (torch.empty(n, device=hidden_ND.device) for _ in range(2))
        wanted = ctx.needs_input_grad[0]
        slope_ND = torch.empty_like(hidden_ND, dtype=torch.float32) if wanted else None
        for rows in (slice(start, start + chunk) for start in range(0, n, chunk)):
            hidden_CD = hidden_ND[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                first_C, second_C = score(hidden_CD, rows)
                if slope_ND is not None:
                    slope_ND[rows] = torch.autograd.grad(first_C.sum(), hidden_CD)[0]
            first_N[rows], second_N[rows] = first_C.detach(), second_C.detach()
        if slope_ND is not None:
            ctx.save_for_backward(hidden_ND, slope_ND)
        ctx.score, ctx.chunk = score, chunk
        return first_N, second_N

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        by_first_N, by_second_N = slopes
        hidden_ND, slope_ND = ctx.saved_tensors
        slope_ND = slope_ND * by_first_N[:, None]
        if by_second_N.any():
            for rows in (slice(start, start + ctx.chunk) for start in range(0, len(hidden_ND), ctx.chunk)):
                hidden_CD = hidden_ND[rows].detach().requires_grad_(True)
                with torch.enable_grad():
                    second_C = ctx.score(hidden_CD, rows)[1]
                    slope_ND[rows] += torch.autograd.grad(second_C, hidden_CD, by_second_N[rows])[0]
        return slope_ND.to(hidden_ND.dtype), None, None
