"""The output layer a few positions at a time, so that no run ever holds the logits of a whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer_heal import losses
from steer_heal.config import SettingsError
from steer_heal.heal.examples import Example
from steer_heal.models import LanguageModel, left_pad

CHUNK_BYTES = 128 << 20
"""Float32 logits of one chunk would take at most this much."""
BLOCK = 8
"""Rows of a chunk that are in float32 at a time: small blocks are used again, large ones are new memory."""


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
        self.barrier_acts = False
        """Whether the last backward pass asked for the divergence's slope: then the next one will too."""

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

    if reference_ND is None or divergence == "nll":
        divergence, reference_ND = "nll", None
    return _Chunked.apply(hidden_ND, labels_N, output, divergence, reference_ND)  # pyright: ignore[reportReturnType]


class _Chunked(torch.autograd.Function):
    """Both losses of each row from its hidden state, `output.chunk` rows at a time.

    Slopes with respect to the logits are written down in `losses`; through the output layer they go to the
    hidden state. The divergence's is found on the way where the barrier acted in the step before, else when
    it turns out to be asked for: most often the barrier is silent and it never is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        labels_N: Tensor,
        output: OutputLayer,
        divergence: str,
        reference_ND: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        n, device = len(hidden_ND), hidden_ND.device
        nll_N, d_N = torch.empty(n, device=device), torch.zeros(n, device=device)
        wanted = ctx.needs_input_grad[0]
        eager = wanted and output.barrier_acts and divergence != "nll"
        slopes = [torch.empty_like(hidden_ND, dtype=torch.float32) for _ in range(wanted + eager)]
        for rows in _chunks(n, output.chunk):
            chunk = _Chunk.of(output, hidden_ND, reference_ND, rows, wanted)
            kept = [torch.empty_like(chunk.logits_CV) for _ in slopes]
            for part in _chunks(len(chunk.logits_CV), BLOCK):
                at = slice(rows.start + part.start, rows.start + part.start + len(chunk.logits_CV[part]))
                logp_BV, logq_BV = chunk.logps(part)
                nll_N[at] = -logp_BV.gather(1, labels_N[at, None])[:, 0]
                if logq_BV is not None:
                    d_N[at] = losses.divergence_rows(divergence, logp_BV, logq_BV)
                if eager and logq_BV is not None:
                    kept[1][part] = losses.divergence_slopes(divergence, logp_BV, logq_BV, d_N[at])
                if wanted:
                    kept[0][part] = losses.nll_slopes(logp_BV, labels_N[at])
            for slope_ND, slopes_CV in zip(slopes, kept, strict=True):
                slope_ND[rows] = chunk.back(slopes_CV)
        ctx.save_for_backward(hidden_ND, d_N, reference_ND, *slopes)
        ctx.output, ctx.divergence = output, divergence
        return nll_N, d_N

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor, None, None, None, None]:
        by_nll_N, by_d_N = by
        hidden_ND, d_N, reference_ND, slope_ND, *known = ctx.saved_tensors
        slope_ND = slope_ND * by_nll_N[:, None]
        ctx.output.barrier_acts = bool(by_d_N.any())
        if ctx.output.barrier_acts and known:
            slope_ND += known[0] * by_d_N[:, None]
        elif ctx.output.barrier_acts and reference_ND is not None:
            for rows in _chunks(len(hidden_ND), ctx.output.chunk):
                chunk = _Chunk.of(ctx.output, hidden_ND, reference_ND, rows, True)
                slopes_CV = torch.empty_like(chunk.logits_CV)
                for part in _chunks(len(slopes_CV), BLOCK):
                    logp_BV, logq_BV = chunk.logps(part)
                    d_B = d_N[rows][part]
                    slopes_CV[part] = losses.divergence_slopes(ctx.divergence, logp_BV, logq_BV, d_B)
                slope_ND[rows] += chunk.back(slopes_CV) * by_d_N[rows, None]
        return slope_ND.to(hidden_ND.dtype), None, None, None, None


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


@dataclass(frozen=True)
class _Chunk:
    """The output layer on a few rows: their logits (C, V), and the reference's."""

    hidden_CD: Tensor
    graph_CV: Tensor
    reference_CV: Tensor | None

    @classmethod
    def of(
        cls, output: OutputLayer, hidden_ND: Tensor, reference_ND: Tensor | None, rows: slice, wanted: bool
    ) -> _Chunk:
        hidden_CD = hidden_ND[rows].detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            graph_CV = output(hidden_CD)
        with torch.no_grad():
            return cls(hidden_CD, graph_CV, None if reference_ND is None else output(reference_ND[rows]))

    @property
    def logits_CV(self) -> Tensor:
        return self.graph_CV.detach()

    def logps(self, part: slice) -> tuple[Tensor, Any]:
        """Float32 log-probs of some of the rows, and the reference's (None without one)."""
        ours = torch.log_softmax(self.logits_CV[part], dim=-1, dtype=torch.float32)
        if self.reference_CV is None:
            return ours, None
        return ours, torch.log_softmax(self.reference_CV[part], dim=-1, dtype=torch.float32)

    def back(self, slopes_CV: Tensor) -> Tensor:
        """Slopes of the hidden states, float32, from slopes of the logits."""
        return torch.autograd.grad(self.graph_CV, self.hidden_CD, slopes_CV, retain_graph=True)[0].float()
