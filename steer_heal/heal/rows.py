"""The losses of single positions and their gradients, without the logits of a whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept. The logits' slopes are written over the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer_heal import losses
from steer_heal.heal.output import OutputLayer, blocks, chunks


def row_losses(
    output: OutputLayer,
    hidden_ND: Tensor,
    labels_N: Tensor,
    divergence: str = "nll",
    reference_ND: Tensor | None = None,
    log_z_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(-log p(label), divergence from the reference) of each position, float32 (N,), in nats.

    `reference_ND`: the reference's hidden states at the same positions; without them, or for "nll", the
    divergence is 0. Gradients reach `hidden_ND` alone. `log_z_N`: `output.log_z` of the reference's states,
    with which "kl_rev" is found without the reference's logits while a gradient is recorded:

        KL(p || q) = E_p[w] (h - h_ref) - (log Z - log Z_ref),   w the head's row of a token

    and E_p[w] is at hand, the slope of the NLL but for the label's row. Exact but for rounding, which in
    bfloat16 is that of single logits (some 0.05 nats); slopes are always found from both models' logits.
    """

    if reference_ND is None or divergence == "nll":
        divergence, reference_ND = "nll", None
    linear = divergence == "kl_rev" and output.weight_VD is not None
    slopes = torch.is_grad_enabled() and hidden_ND.requires_grad
    known_N = log_z_N if linear and slopes else None
    return _Chunked.apply(hidden_ND, labels_N, output, divergence, reference_ND, known_N)  # pyright: ignore[reportReturnType]


class _Chunked(torch.autograd.Function):
    """Both losses of each row from its hidden state, some rows at a time.

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
        log_z_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        n, wanted = len(hidden_ND), ctx.needs_input_grad[0]
        nll_N, own_N, d_N = (torch.zeros(n, device=hidden_ND.device) for _ in range(3))
        compared_ND = reference_ND if log_z_N is None else None
        eager = wanted and output.barrier_acts and compared_ND is not None
        slopes = [torch.empty_like(hidden_ND, dtype=torch.float32) for _ in range(wanted + eager)]
        for rows in chunks(n, output.chunk if compared_ND is None else _half(output)):
            chunk = _Chunk.of(output, hidden_ND, compared_ND, rows, wanted)
            for part in blocks(chunk.logits_CV):
                at = slice(rows.start + part.start, rows.start + part.stop)
                if chunk.reference_CV is None:
                    nll_N[at], own_N[at] = chunk.predict(part, labels_N[at], wanted)
                else:
                    nll_N[at], d_N[at] = chunk.compare(part, labels_N[at], divergence)
            for slope_ND, slopes_CV in zip(slopes, chunk.written, strict=False):
                slope_ND[rows] = chunk.back(slopes_CV)
            del chunk
        if reference_ND is not None and log_z_N is not None and output.weight_VD is not None:
            mean_ND = slopes[0] + output.weight_VD[labels_N]
            d_N = ((hidden_ND - reference_ND).float() * mean_ND).sum(dim=-1) - (own_N - log_z_N)
            d_N.clamp_(min=0.0)
        ctx.save_for_backward(hidden_ND, labels_N, reference_ND, *slopes)
        ctx.output, ctx.divergence = output, divergence
        return nll_N, d_N

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        by_nll_N, by_d_N = by
        hidden_ND, labels_N, reference_ND, slope_ND, *known = ctx.saved_tensors
        slope_ND = slope_ND * by_nll_N[:, None]
        ctx.output.barrier_acts = bool(by_d_N.any())
        if ctx.output.barrier_acts and known:
            slope_ND += known[0] * by_d_N[:, None]
        elif ctx.output.barrier_acts and reference_ND is not None:
            for rows in chunks(len(hidden_ND), _half(ctx.output)):
                chunk = _Chunk.of(ctx.output, hidden_ND, reference_ND, rows, True)
                for part in blocks(chunk.logits_CV):
                    chunk.compare(part, labels_N[rows][part], ctx.divergence)
                slope_ND[rows] += chunk.back(chunk.written[1]) * by_d_N[rows, None]
                del chunk
        return slope_ND.to(hidden_ND.dtype), None, None, None, None, None


def _half(output: OutputLayer) -> int:
    return max(1, output.chunk // 2)


@dataclass(frozen=True)
class _Chunk:
    """The output layer on a few rows: their logits (C, V), the reference's; slopes are written over both."""

    hidden_CD: Tensor
    graph_CV: Tensor
    logits_CV: Tensor
    reference_CV: Tensor | None

    @classmethod
    def of(
        cls, output: OutputLayer, hidden_ND: Tensor, reference_ND: Tensor | None, rows: slice, wanted: bool
    ) -> _Chunk:
        hidden_CD = hidden_ND[rows].detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            graph_CV = output(hidden_CD)
        with torch.no_grad():
            reference_CV = None if reference_ND is None else output(reference_ND[rows])
        return cls(hidden_CD, graph_CV, graph_CV.detach(), reference_CV)

    @property
    def written(self) -> list[Tensor]:
        """The logits, then the reference's where there are any."""
        return [self.logits_CV] if self.reference_CV is None else [self.logits_CV, self.reference_CV]

    def predict(self, part: slice, labels_B: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        """NLL and log Z of some rows; with `slopes` the NLL's instead of the logits."""
        wide_BV = self.logits_CV[part].float()
        nll_B, log_z_B, p_BV = losses.softmax_nll(wide_BV, labels_B)
        if slopes:
            self.logits_CV[part] = losses.nll_slopes(p_BV, labels_B)
        return nll_B, log_z_B

    def compare(self, part: slice, labels_B: Tensor, divergence: str) -> tuple[Tensor, Tensor]:
        """NLL and divergence of some rows; their slopes instead of the logits and the reference's."""
        ours_BV, theirs_BV = (logits_CV[part].float() for logits_CV in self.written)
        compared = losses.SOFTMAX_DIVERGENCES[divergence](ours_BV, theirs_BV, labels_B)
        nll_B, d_B, p_BV, slopes_BV = compared
        self.written[0][part] = losses.nll_slopes(p_BV, labels_B)
        self.written[1][part] = slopes_BV
        return nll_B, d_B

    def back(self, slopes_CV: Tensor) -> Tensor:
        """Slopes of the hidden states, float32, from slopes of the logits."""
        return torch.autograd.grad(self.graph_CV, self.hidden_CD, slopes_CV, retain_graph=True)[0].float()
