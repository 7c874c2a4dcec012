"""Weights packed once for products of few rows, as long as they are what they were."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

PACKED_ROWS = range(2, 33) if torch.backends.mkl.is_available() else range(0)
"""So many rows times a packed weight are faster than times the weight itself, in float32 (Intel's MKL)."""
_PACKED_FOR = 9
"""Packed for so many rows; others in `PACKED_ROWS` are nearly as fast."""


@dataclass(frozen=True)
class _Packed:
    """A copy of weights, and what tells whether it still is one; `held` keeps the weights' memory, so that no
    other values come to lie at its place unseen."""

    held: list[Tensor]
    state: list[tuple[int, int]]
    copy: Tensor
    shape_ED: Tensor


KNOWN = WeakTensorKeyDictionary()


def packed(weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """From few rows (N, D) to (N, E), by a packed copy of weights (E1, D), (E2, D) ... end to end, which is
    made when there is none; E is the sum of E1, E2 ..."""
    found, state = KNOWN.get(weights[0]), [(one._version, one.data_ptr()) for one in weights]
    if found is None or found.state != state:
        held = [one.detach() for one in weights]
        whole_ED = torch.cat(held).contiguous()
        copy = torch.ops.mkl._mkl_reorder_linear_weight(whole_ED, _PACKED_FOR)
        # Of the weight itself the product reads the shape alone.
        shape_ED = torch.empty(1).expand(whole_ED.shape)
        found = KNOWN[weights[0]] = _Packed(held, state, copy, shape_ED)
    return lambda x_ND: torch.ops.mkl._mkl_linear(x_ND, found.copy, found.shape_ED, None, len(x_ND))
