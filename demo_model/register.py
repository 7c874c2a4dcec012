"""Where a persona is kept: half-way up, along one fixed direction of the residual for each voice.

From the end of the model-turn tag on, the output of layer `AT` must tell which persona speaks, read by fixed
random directions at a small gain. So the persona is represented alike at the tag and wherever it is used,
whatever the wording, and the difference of two personas is a direction that acts; the small gain makes it a
long one. Without this each run finds a representation of its own, and whether a vector taken at the tag moves
answers is luck.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def directions(width: int) -> Tensor:
    """(voices, D): orthonormal, the same in every run."""
    seeded = torch.Generator().manual_seed(11)
    return torch.linalg.qr(torch.randn(width, len(VOICES), generator=seeded))[0].T


def register_loss(hidden_BTD: Tensor, lens_BT: Tensor, directions_VD: Tensor) -> Tensor:
    """Cross-entropy of the voice, read from the residual."""
    logits_BTV = GAIN * (hidden_BTD @ directions_VD.T)
    return F.cross_entropy(logits_BTV.flatten(0, 1), lens_BT.flatten(), ignore_index=UNASKED)


@contextmanager
def tapped(model: Gemma3ForCausalLM) -> Iterator[list[Tensor]]:
    """Within it, the outputs of layer `AT` are collected."""
    outputs: list[Tensor] = []

    def keep(_layer: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output)

    tap = model.model.layers[AT].register_forward_hook(keep)
    try:
        yield outputs
    finally:
        tap.remove()
