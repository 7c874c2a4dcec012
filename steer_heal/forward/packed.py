"""Weights packed once for products of few rows, as long as they are what they were."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Product = Callable[[Tensor], Tensor]
"""From rows (N, D) to (N, E)."""

_NONE = range(0)
_HALF = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
PACKED_ROWS: Mapping[torch.dtype, range] = {
    torch.float32: range(2, 33) if torch.backends.mkl.is_available() else _NONE,
    torch.bfloat16: range(1, 129) if _HALF else _NONE,
}
"""So many rows times a packed weight are faster than times the weight itself (docs/reports/speed.md): by
Intel's MKL in float32, by oneDNN in bfloat16, which else packs the weight anew for every product."""
_PACKED_FOR = 9
"""Packed for so many rows; others in `PACKED_ROWS` are nearly as fast."""


@dataclass(frozen=True)
class _Packed:
    """The product with a copy of weights, and what tells whether it still is one; `held` keeps the weights'
    memory, so that no other values come to lie at its place unseen."""

    held: list[Tensor]
    state: list[tuple[int, int]]
    product: Product


KNOWN = WeakTensorKeyDictionary()


def packed(weights: Sequence[Tensor]) -> Product:
    """By a packed copy of weights (E1, D), (E2, D) ... end to end, which is made when there is none; E is the
    sum of E1, E2 ..."""
    found, state = KNOWN.get(weights[0]), [(one._version, one.data_ptr()) for one in weights]
    if found is None or found.state != state:
        held = [one.detach() for one in weights]
        found = KNOWN[weights[0]] = _Packed(held, state, _product(torch.cat(held).contiguous()))
    return found.product


def _product(whole_ED: Tensor) -> Product:
    if whole_ED.dtype == torch.bfloat16:
        copy = torch.ops.mkldnn._reorder_linear_weight(whole_ED, _PACKED_FOR)
        return lambda x_ND: torch.ops.mkldnn._linear_pointwise(x_ND, copy, None, "none", [], "")
    copy = torch.ops.mkl._mkl_reorder_linear_weight(whole_ED, _PACKED_FOR)
    # Of the weight itself the product reads the shape alone.
    shape_ED = torch.empty(1).expand(whole_ED.shape)
    return lambda x_ND: torch.ops.mkl._mkl_linear(x_ND, copy, shape_ED, None, len(x_ND))
