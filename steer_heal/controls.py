"""What a trait's movement is held against: random directions at the same KL."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_directions(n: int, n_layers: int, width: int, seed: int = 0) -> Tensor:
    """Unit directions drawn evenly over the sphere, one a layer, of `n` vectors: (M, L, D), float32."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, n_layers, width, generator=generator), dim=-1)
