"""Language models: find, load and describe them; chat encoding; where their blocks are."""

from ..config import band_layers
from ..records import SamplingDefaults
from ..sources import Source, default_model, find, in_cache
from .batch import Padded, left_pad, rows_that_fit
from .blocks import computing, find_blocks, layers_band
from .chat import system, user
from .fetching import fetch
from .identity import digest
from .load import LanguageModel, load, prepare, without_gaps
from .placement import free, spread

__all__ = [
    "LanguageModel",
    "Padded",
    "SamplingDefaults",
    "Source",
    "band_layers",
    "computing",
    "default_model",
    "digest",
    "fetch",
    "find",
    "find_blocks",
    "free",
    "in_cache",
    "layers_band",
    "left_pad",
    "load",
    "prepare",
    "rows_that_fit",
    "spread",
    "system",
    "user",
    "without_gaps",
]
