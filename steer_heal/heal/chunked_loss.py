"""The loss of a batch and its gradient, without the logits of the whole batch.

With a vocabulary of 262144 one row of float32 logits is 1 MiB. Losses of a position depend on its own hidden
state alone, so their gradients with respect to it are found chunk by chunk and only those, as wide as the
model, are kept. The logits' slopes are written over the logits, and go back through the output layer, which
costs as much as making the logits did, once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer_heal.heal import losses
from steer_heal.heal.lm_head import OutputLayer, blocks, chunks


@dataclass(frozen=True)
class Targets:
    """What a batch is measured by, row by row.

    `reference_ND`: the reference's hidden states at the same positions; without them, or for "nll", the
    divergence is 0. `temperature`: of the softmax that gives p(label); the divergence's is 1.
    """

    output: OutputLayer
    labels_N: Tensor
    divergence: str = "nll"
    reference_ND: Tensor | None = None
    temperature: float = 1.0

    @property
    def against_ND(self) -> Tensor | None:
        """The reference's states where there is a divergence from it."""
        return None if self.divergence == "nll" else self.reference_ND

    def chunks(self, n: int) -> Iterator[slice]:
        """Of n rows those whose logits exist at a time."""
        return chunks(n, max(1, self.output.chunk // (1 if self.against_ND is None else 2)))

    def chunk(self, hidden_ND: Tensor, rows: slice) -> "_Chunk":
        """The logits of these rows."""
        hidden_CD = hidden_ND[rows].detach().requires_grad_(torch.is_grad_enabled())
        logits_CV = self.output(hidden_CD)
        with torch.no_grad():
            reference_CV = None if self.against_ND is None else self.output(self.against_ND[rows])
        return _Chunk(self, rows, hidden_CD, logits_CV, logits_CV.detach(), reference_CV)


def row_losses(targets: Targets, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(-log p(label), divergence from the reference) of each position, float32 (N,), in nats; no gradient."""
    nll_N, d_N = (torch.zeros(len(hidden_ND), device=hidden_ND.device) for _ in range(2))
    with torch.no_grad():
        for rows in targets.chunks(len(hidden_ND)):
            chunk = targets.chunk(hidden_ND, rows)
            for part, at in chunk.blocks():
                nll_N[at], d_N[at], *_ = chunk.compare(part, at)
            del chunk  # or the next would be made beside it
    return nll_N, d_N


def batch_loss(
    targets: Targets, hidden_ND: Tensor, weights_N: Tensor, lam: float = 0.0, tau: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """mean(weights_N * NLL) + lam * relu(mean(D) - tau), and `row_losses`; gradients of the first alone reach
    `hidden_ND`."""
    return _BatchLoss.apply(hidden_ND, targets, weights_N, lam, tau)  # pyright: ignore[reportReturnType]


class _BatchLoss(torch.autograd.Function):
    """Its slopes with respect to the logits are written down in `losses`."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, targets: Targets, weights_N: Tensor, lam: float, tau: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll_N, d_N = (torch.zeros(len(hidden_ND), device=hidden_ND.device) for _ in range(2))
        # Whether a barrier acts is known once all rows are; where nothing is free it acts, and the slopes of
        # both losses go back as one.
        apart = tau > 0.0
        fit_ND, held_ND = (torch.zeros_like(hidden_ND, dtype=torch.float32) for _ in range(2))
        with torch.enable_grad():
            for rows in targets.chunks(len(hidden_ND)):
                chunk = targets.chunk(hidden_ND, rows)
                for part, at in chunk.blocks():
                    nll_N[at], d_N[at] = chunk.write_slopes(part, at, weights_N[at], lam, apart)
                if chunk.reference_CV is None or not apart:
                    fit_ND[rows] = chunk.back(chunk.logits_CV)
                else:
                    fit_ND[rows], held_ND[rows] = chunk.back(chunk.logits_CV), chunk.back(chunk.reference_CV)
                del chunk  # or the next would be made beside it
        d = d_N.mean()
        if apart and d > tau:
            fit_ND += held_ND
        ctx.save_for_backward((fit_ND / len(hidden_ND)).to(hidden_ND.dtype))
        ctx.mark_non_differentiable(nll_N, d_N)
        return (weights_N * nll_N).mean() + losses.barrier(d, lam, tau), nll_N, d_N

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_ND,) = ctx.saved_tensors
        return slopes_ND * by[0], None, None, None, None


@dataclass(frozen=True)
class _Chunk:
    """The output layer on a few rows: their logits (C, V), the reference's; slopes are written over both."""

    targets: Targets
    rows: slice
    hidden_CD: Tensor
    graph_CV: Tensor
    logits_CV: Tensor
    reference_CV: Tensor | None

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows that are in float32 together: where they are in this chunk, and where in the batch."""
        for part in blocks(self.logits_CV):
            yield part, slice(self.rows.start + part.start, self.rows.start + part.stop)

    def compare(self, part: slice, at: slice) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """NLL and divergence of some rows; p(label)'s softmax, the divergence's slopes where there is one."""
        labels_B, heat = self.targets.labels_N[at], self.targets.temperature
        ours_BV = self.logits_CV[part].float()
        cool_BV = None if heat == 1.0 else ours_BV / heat
        if self.reference_CV is None:
            nll_B, _, p_BV = losses.softmax_nll(ours_BV if cool_BV is None else cool_BV, labels_B)
            return nll_B, torch.zeros_like(nll_B), p_BV, None
        compared = losses.SOFTMAX_DIVERGENCES[self.targets.divergence]
        nll_B, d_B, p_BV, slopes_BV = compared(ours_BV, self.reference_CV[part].float(), labels_B)
        if cool_BV is not None:
            nll_B, _, p_BV = losses.softmax_nll(cool_BV, labels_B)
        return nll_B, d_B, p_BV, slopes_BV

    def write_slopes(
        self, part: slice, at: slice, weights_B: Tensor, lam: float, apart: bool
    ) -> tuple[Tensor, Tensor]:
        """NLL and divergence of some rows; the loss's slopes instead of the logits, with `apart` the
        divergence's instead of the reference's."""
        nll_B, d_B, p_BV, slopes_BV = self.compare(part, at)
        weighed_BV = losses.nll_slopes(p_BV, self.targets.labels_N[at], self.targets.temperature)
        weighed_BV.mul_(weights_B[:, None])
        if slopes_BV is not None and self.reference_CV is not None:
            if apart:
                self.reference_CV[part] = slopes_BV.mul_(lam)
            else:
                weighed_BV.add_(slopes_BV, alpha=lam)
        self.logits_CV[part] = weighed_BV
        return nll_B, d_B

    def back(self, slopes_CV: Tensor) -> Tensor:
        """Slopes of the hidden states, float32, from slopes of the logits."""
        return torch.autograd.grad(self.graph_CV, self.hidden_CD, slopes_CV, retain_graph=True)[0].float()
