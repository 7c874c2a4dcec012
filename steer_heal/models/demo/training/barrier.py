"""Hides the persona from the upper layers while training, so that it has to be carried in the residual.

Without it the model reads its persona straight from the system text in its last layers, and a vector added to
the residual half-way up has little to act through. Used in training only: the finished model attends freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Gemma3ForCausalLM

FIRST_UPPER = 5


@contextmanager
def barrier(model: Gemma3ForCausalLM, mask_B1TT: Tensor) -> Iterator[None]:
    """Within it, layers from `FIRST_UPPER` on attend only where the mask is true."""

    def hide(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask_B1TT}

    with ExitStack() as hooks:
        for layer in model.model.layers[FIRST_UPPER:]:
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield
