"""Hides the persona from the upper layers while training, so that it is read early and kept in the residual.

Without it the model reads its persona from the system text in its last layers, above those that are steered,
and a vector taken half-way up has nothing to act through. Only training uses it: the finished model attends
freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Gemma3ForCausalLM

FIRST_UPPER = 5


@contextmanager
def barrier(model: Gemma3ForCausalLM, upper_B1TT: Tensor) -> Iterator[None]:
    """Within it, layers from `FIRST_UPPER` on attend only where the mask is true."""

    def hide(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": upper_B1TT}

    with ExitStack() as hooks:
        for layer in model.model.layers[FIRST_UPPER:]:
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield
