"""How long the matrix products of some work take by themselves: what no way of doing them can go below.

Those inside one fused attention are not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Shape = tuple[tuple[int, ...], tuple[int, ...]]
_PRODUCTS: dict[Any, slice] = {
    torch.ops.aten.mm.default: slice(0, 2),
    torch.ops.aten.mm.out: slice(0, 2),
    torch.ops.aten.addmm.default: slice(1, 3),
    torch.ops.aten.bmm.default: slice(0, 2),
    torch.ops.aten.bmm.out: slice(0, 2),
}


class _Record(TorchDispatchMode):
    """The shapes of all products while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            with self:  # Without gradients a linear layer comes as one piece: this takes it apart.
                made = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if made is NotImplemented else made
        left, right = args[_PRODUCTS[func]]
        self.shapes[tuple(left.shape), tuple(right.shape)] += 1
        return func(*args, **kwargs)


def shapes(work: Callable[[], object]) -> Counter[Shape]:
    """How often the work asks for each product, (M, K) by (K, N) or (B, M, K) by (B, K, N)."""
    with _Record() as record:
        work()
    return record.shapes


def alone(counted: Counter[Shape]) -> Callable[[], None]:
    """To be timed: these products in float32, nothing between them, right sides laid out as weights are."""
    numbers = torch.rand(max(math.prod(side) for both in counted for side in both))

    def run() -> None:
        for (left, right), times in counted.items():
            x, w = numbers[: math.prod(left)].view(left), numbers[: math.prod(right)]
            w = w.view(*right[:-2], right[-1], right[-2]).mT
            for _ in range(times):
                torch.matmul(x, w)

    return run
