"""Where a model's decoder blocks are, and which of them a band of depth holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from steer_heal.config import SettingsError

_OTHER_TOWERS = ("vision", "visual", "audio", "image", "encoder")


def find_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The text decoder's blocks in order: the one `ModuleList` that is as long as the text config is deep.

    Towers for images and sound are passed over. Errors: `SettingsError` when no such list is found.
    """
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(tower in path for tower in _OTHER_TOWERS)
        and len({type(block) for block in module}) == 1
    ]
    if not found:
        raise SettingsError(
            f"{type(model).__name__} has no list of {n_layers} decoder blocks to steer: "
            "choose a decoder-only model such as Gemma 3, Llama, Qwen or Mistral."
        )
    return list(found[0])


@contextmanager
def computing(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` stands for the block's own while the context lasts; its hooks run as ever."""
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def layers_band(n_layers: int, first: int, last: int) -> tuple[float, float]:
    """The band that holds exactly the layers `first` to `last`, both included."""
    if not 0 <= first <= last < n_layers:
        raise SettingsError(f"Layers {first}-{last} are not among the model's 0-{n_layers - 1}.")
    return first / n_layers, (last + 1) / n_layers
