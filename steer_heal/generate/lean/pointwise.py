"""The lean forward's elementwise work; where there is much of it, in fewer passes than torch's own takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm

_MANY = 1 << 15
_GELU = math.sqrt(2.0 / math.pi)


def norm_late(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm (Zhang and Sennrich, 2019), its product with the weight in float32, then rounded: Gemma's."""
    if _many(x):
        return _rms_norm(x, eps).mul_(weight_D)
    return rms_norm(x.float(), weight_D.shape, weight_D, eps).to(x.dtype)


def norm_early(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm rounded before its product with the weight: Llama's."""
    if _many(x):
        return _rms_norm(x, eps).mul_(weight_D)
    return weight_D * rms_norm(x.float(), weight_D.shape, None, eps).to(x.dtype)


def _many(x: Tensor) -> bool:
    """Whether passes over memory count more than calls: prompts on a CPU, in float32."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= _MANY


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) in two passes; torch's takes five on a CPU."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel, 2016); much of it as x sigmoid(2 z), z the tanh's."""
    if not _many(x):
        return gelu(x, approximate="tanh")
    y = (x * x).mul_(2 * _GELU * 0.044715).add_(2 * _GELU)
    return y.mul_(x).sigmoid_().mul_(x)
