"""The output layer a few positions at a time, so that no run ever holds the logits of a whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_heal import losses
from steer_heal.config import SettingsError
from steer_heal.heal.examples import Example
from steer_heal.models import LanguageModel, left_pad

CHUNK_BYTES = 128 << 20
"""Float32 logits of one chunk take at most this much."""


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

    divergence = "nll" if reference_ND is None else divergence
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
            logits_CV, back = _through(output, hidden_ND[rows], wanted)
            logp_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
            nll_N[rows] = -logp_CV.gather(1, labels_N[rows, None])[:, 0]
            if divergence != "nll" and reference_ND is not None:
                logq_CV = torch.log_softmax(output(reference_ND[rows]), dim=-1, dtype=torch.float32)
                d_N[rows] = losses.divergence_rows(divergence, logp_CV, logq_CV)
                if eager:
                    slopes[1][rows] = back(losses.divergence_slopes(divergence, logp_CV, logq_CV, d_N[rows]))
            if wanted:
                slopes[0][rows] = back(losses.nll_slopes(logp_CV, labels_N[rows]))
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
                logits_CV, back = _through(ctx.output, hidden_ND[rows], True)
                logp_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
                logq_CV = torch.log_softmax(ctx.output(reference_ND[rows]), dim=-1, dtype=torch.float32)
                slopes_CV = losses.divergence_slopes(ctx.divergence, logp_CV, logq_CV, d_N[rows])
                slope_ND[rows] += back(slopes_CV) * by_d_N[rows, None]
        return slope_ND.to(hidden_ND.dtype), None, None, None, None


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _through(
    output: OutputLayer, hidden_CD: Tensor, wanted: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The logits (C, V), and what takes slopes with respect to them to those of the hidden state, float32."""
    hidden_CD = hidden_CD.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        logits_CV = output(hidden_CD)

    def back(slopes_CV: Tensor) -> Tensor:
        slopes_CV = slopes_CV.to(logits_CV.dtype)
        return torch.autograd.grad(logits_CV, hidden_CD, slopes_CV, retain_graph=True)[0].float()

    return logits_CV.detach(), back
