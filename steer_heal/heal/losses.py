"""The training loss as pure functions of tensors.

loss = w * NLL on the completion + lam * relu(D - tau), where D is a divergence of the student from its
reference, its mean over positions (nats per token); with tau above 0 it is a barrier, so that moving is free
up to tau and costly beyond it.
Everything is computed in float32, whatever the logits' type. Shapes: B rows, T tokens, V vocabulary, N any
number of positions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """p and log sum exp at each position; p is written over the logits, which are float32."""
    most_N = logits_NV.amax(dim=-1)
    p_NV = logits_NV.sub_(most_N[:, None]).exp_()
    sum_N = p_NV.sum(dim=-1)
    return p_NV.div_(sum_N[:, None]), most_N + sum_N.log()


def softmax_nll(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-log p(label), log sum exp and p at each position; p is written over the logits, which are float32."""
    label_N = logits_NV.gather(1, labels_N[:, None])[:, 0]
    p_NV, log_z_N = softmax(logits_NV)
    return log_z_N - label_N, log_z_N, p_NV


def _expected(p_NV: Tensor, x_NV: Tensor) -> Tensor:
    """E_p[x] at each position. As a product of matrices it makes no third tensor of that size."""
    return torch.bmm(p_NV[:, None, :], x_NV[:, :, None])[:, 0, 0]


Compared = tuple[Tensor, Tensor, Tensor, Tensor]
"""NLL (N,), divergence (N,), p (N, V), the divergence's slopes by the student's logits (N, V)."""


def softmax_kl_rev(logits_NV: Tensor, reference_NV: Tensor, labels_N: Tensor) -> Compared:
    """KL(p || q) = E_p[l - l_ref] - (log Z - log Z_ref), its slopes p (l - l_ref - E_p[l - l_ref]).

    From both models' float32 logits l; p and the slopes are written over them.
    """
    log_q_N = reference_NV.logsumexp(dim=-1)
    gap_NV = torch.sub(logits_NV, reference_NV, out=reference_NV)
    nll_N, log_z_N, p_NV = softmax_nll(logits_NV, labels_N)
    mean_N = _expected(p_NV, gap_NV)
    d_N = (mean_N - (log_z_N - log_q_N)).clamp_(min=0.0)
    return nll_N, d_N, p_NV, gap_NV.sub_(mean_N[:, None]).mul_(p_NV)


def softmax_kl_fwd(logits_NV: Tensor, reference_NV: Tensor, labels_N: Tensor) -> Compared:
    """KL(q || p) = E_q[l_ref - l] - (log Z_ref - log Z), its slopes p - q; as `softmax_kl_rev`."""
    gap_NV = reference_NV - logits_NV
    q_NV, log_q_N = softmax(reference_NV)
    mean_N = _expected(q_NV, gap_NV)
    nll_N, log_z_N, p_NV = softmax_nll(logits_NV, labels_N)
    d_N = (mean_N - (log_q_N - log_z_N)).clamp_(min=0.0)
    return nll_N, d_N, p_NV, torch.sub(p_NV, q_NV, out=q_NV)


SOFTMAX_DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Compared]] = {
    "kl_fwd": softmax_kl_fwd,
    "kl_rev": softmax_kl_rev,
}


def nll_slopes(p_NV: Tensor, labels_N: Tensor, temperature: float = 1.0) -> Tensor:
    """d nll / d logits at each position, p being softmax(logits / temperature): (p - onehot(label)) /
    temperature, written over p."""
    p_NV[torch.arange(len(labels_N), device=labels_N.device), labels_N] -= 1.0
    return p_NV if temperature == 1.0 else p_NV.div_(temperature)


def barrier(d: Tensor, lam: float, tau: float) -> Tensor:
    """lam * relu(d - tau): nothing up to `tau` nats per token, then linear."""
    return lam * F.relu(d - tau)
