"""Language models: find, load and describe them; chat encoding; where their blocks are."""

from steer_heal.config import band_layers
from steer_heal.models.batch import Padded, left_pad, rows_that_fit
from steer_heal.models.blocks import computing, find_blocks, layers_band
from steer_heal.models.chat import system, user
from steer_heal.models.fetching import fetch
from steer_heal.models.identity import digest
from steer_heal.models.load import LanguageModel, load, outline, prepare, without_gaps
from steer_heal.models.placement import free
from steer_heal.records import SamplingDefaults
from steer_heal.sources import default_model, find, in_cache
