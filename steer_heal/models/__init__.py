"""Language models: find, load and describe them; chat encoding; where their blocks are."""

from .blocks import band_layers, find_blocks, layers_band
from .chat import system, user
from .find import Source, find
from .load import LanguageModel, SamplingDefaults, load

__all__ = [
    "LanguageModel",
    "SamplingDefaults",
    "Source",
    "band_layers",
    "find",
    "find_blocks",
    "layers_band",
    "load",
    "system",
    "user",
]
