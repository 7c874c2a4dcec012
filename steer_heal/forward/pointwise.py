"""GELU and what it gates, in fewer passes over memory than torch takes where there is much of it."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import gelu

_MANY = {torch.float32: 1 << 15, torch.bfloat16: 1 << 16}
"""From how many numbers on passes over memory cost more than calls, on a CPU."""
_AT_ONCE = 1 << 16
"""As many go through several passes without leaving the cache."""
_GELU = math.sqrt(2.0 / math.pi)


def _many(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _MANY and x.numel() >= _MANY[x.dtype]


@cache
def _constant(value: float) -> Tensor:
    """A number as a tensor, which an operation takes without making one of it again and again."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32)


def gated_gelu(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """gelu(gate) up, GELU in its tanh form (Hendrycks and Gimpel, 2016); `gate_NF` is overwritten."""
    if not _many(gate_NF):
        return gelu(gate_NF, approximate="tanh").mul_(up_NF)
    rows = max(1, _AT_ONCE * torch.get_num_threads() // gate_NF.shape[-1])
    share_NF = torch.empty((min(rows, len(gate_NF)), gate_NF.shape[-1]), dtype=torch.float32)
    for gate, up in zip(gate_NF.split(rows), up_NF.split(rows), strict=True):
        wide = gate.float()
        gated = wide.mul_(_gelu_share(wide, share_NF[: len(gate)]))
        if gated is not gate:
            gate.copy_(gated)
        gate.mul_(up)
    return gate_NF


def _gelu_share(x: Tensor, out: Tensor) -> Tensor:
    """gelu(x) / x = sigmoid(2 z), z the tanh's argument. torch's exp is slow where it over- or underflows."""
    torch.addcmul(_constant(2 * _GELU), x, x, value=2 * _GELU * 0.044715, out=out)
    return out.mul_(x).sigmoid_()
