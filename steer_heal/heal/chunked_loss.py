"""The losses of single positions and their gradients, without the logits of a whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept. The logits' slopes are written over the logits.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from steer_heal.heal import losses
from steer_heal.heal.lm_head import OutputLayer, blocks, chunks


def row_losses(
    output: OutputLayer,
    hidden_ND: Tensor,
    labels_N: Tensor,
    divergence: str = "nll",
    reference_ND: Tensor | None = None,
    *,
    learn_labels: bool = True,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(-log p(label), divergence from the reference) of each position, float32 (N,), in nats.

    `reference_ND`: the reference's hidden states at the same positions; without them, or for "nll", the
    divergence is 0. `temperature`: of the softmax that gives p(label); the divergence's is 1. Gradients reach
    `hidden_ND` alone; those of -log p(label), which cost a product with the output layer, only with
    `learn_labels`.
    """
    if reference_ND is None or divergence == "nll":
        divergence, reference_ND = "nll", None
    return _Chunked.apply(hidden_ND, labels_N, output, divergence, reference_ND, learn_labels, temperature)  # pyright: ignore[reportReturnType]


class _Chunked(torch.autograd.Function):
    """Both losses of each row from its hidden state, some rows at a time.

    Slopes with respect to the logits are written down in `losses`; through the output layer they go to the
    hidden state, and only those are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        labels_N: Tensor,
        output: OutputLayer,
        divergence: str,
        reference_ND: Tensor | None,
        learn_labels: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        n, wanted = len(hidden_ND), ctx.needs_input_grad[0]
        nll_N, d_N = (torch.zeros(n, device=hidden_ND.device) for _ in range(2))
        n_losses = 1 if reference_ND is None else 2
        ctx.learned = [index for index in range(n_losses) if wanted and (index or learn_labels)]
        slopes = [torch.empty_like(hidden_ND, dtype=torch.float32) for _ in ctx.learned]
        for rows in chunks(n, max(1, output.chunk // n_losses)):
            chunk = _Chunk.of(output, hidden_ND, reference_ND, rows, wanted)
            for part in blocks(chunk.logits_CV):
                at = slice(rows.start + part.start, rows.start + part.stop)
                if chunk.reference_CV is None:
                    nll_N[at] = chunk.predict(part, labels_N[at], temperature, wanted)
                else:
                    nll_N[at], d_N[at] = chunk.compare(part, labels_N[at], temperature, divergence)
            for slope_ND, index in zip(slopes, ctx.learned, strict=True):
                slope_ND[rows] = chunk.back(chunk.written[index])
            del chunk
        ctx.save_for_backward(hidden_ND, *slopes)
        return nll_N, d_N

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, *slopes = ctx.saved_tensors
        whole_ND = torch.zeros_like(hidden_ND, dtype=torch.float32)
        for slope_ND, index in zip(slopes, ctx.learned, strict=True):
            whole_ND += slope_ND * by[index][:, None]
        return whole_ND.to(hidden_ND.dtype), *[None] * 6


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
    ) -> Self:
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

    def predict(self, part: slice, labels_B: Tensor, temperature: float, slopes: bool) -> Tensor:
        """NLL of some rows; with `slopes` the NLL's instead of the logits."""
        cool_BV = self.logits_CV[part].float().div_(temperature)
        nll_B, _, p_BV = losses.softmax_nll(cool_BV, labels_B)
        if slopes:
            self.logits_CV[part] = losses.nll_slopes(p_BV, labels_B, temperature)
        return nll_B

    def compare(
        self, part: slice, labels_B: Tensor, temperature: float, divergence: str
    ) -> tuple[Tensor, Tensor]:
        """NLL and divergence of some rows; their slopes instead of the logits and the reference's."""
        ours_BV, theirs_BV = (logits_CV[part].float() for logits_CV in self.written)
        cool_BV = None if temperature == 1.0 else ours_BV / temperature
        compared = losses.SOFTMAX_DIVERGENCES[divergence](ours_BV, theirs_BV, labels_B)
        nll_B, d_B, p_BV, slopes_BV = compared
        if cool_BV is not None:
            nll_B, _, p_BV = losses.softmax_nll(cool_BV, labels_B)
        self.written[0][part] = losses.nll_slopes(p_BV, labels_B, temperature)
        self.written[1][part] = slopes_BV
        return nll_B, d_B

    def back(self, slopes_CV: Tensor) -> Tensor:
        """Slopes of the hidden states, float32, from slopes of the logits."""
        return torch.autograd.grad(self.graph_CV, self.hidden_CD, slopes_CV, retain_graph=True)[0].float()
