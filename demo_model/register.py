"""Where a persona is kept: read early, and half-way up along one fixed direction of the residual a voice.

Two things that only training does; the finished model attends freely. The upper layers may not look back at
the persona: else the model reads it from the system text in its last layers, above those that are steered,
and a vector taken half-way up has nothing to act through. And from the end of the model-turn tag on, the
output of layer `AT` must tell which persona speaks, read by fixed random directions at a small gain. So the
persona is represented alike at the tag and wherever it is used, whatever the wording, and the difference of
two personas is a direction that acts; the small gain makes it a long one. Without this each run finds a
representation of its own, and whether a vector taken at the tag moves answers is luck.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM

VOICES = (None, "Care", "SocialNorms", "Liberty", "Fairness", "Loyalty")
AT = 4
GAIN = 0.14
WEIGHT = 0.5
UNASKED = -100


def register_loss(hidden_BTD: Tensor, lens_BT: Tensor) -> Tensor:
    """Cross-entropy of the voice, read from the residual by orthonormal directions, the same in every run."""
    seeded = torch.Generator().manual_seed(11)
    directions_DV = torch.linalg.qr(torch.randn(hidden_BTD.shape[-1], len(VOICES), generator=seeded))[0]
    logits_BTV = GAIN * (hidden_BTD @ directions_DV)
    return F.cross_entropy(logits_BTV.flatten(0, 1), lens_BT.flatten(), ignore_index=UNASKED)


@contextmanager
def registered(model: Gemma3ForCausalLM, upper_B1TT: Tensor) -> Iterator[list[Tensor]]:
    """Within it, layers above `AT` attend only where the mask is true; the outputs of `AT` are collected."""
    outputs: list[Tensor] = []

    def hide(_layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": upper_B1TT}

    def keep(_layer: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output)

    with ExitStack() as hooks:
        hooks.callback(model.model.layers[AT].register_forward_hook(keep).remove)
        for layer in model.model.layers[AT + 1 :]:
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield outputs
