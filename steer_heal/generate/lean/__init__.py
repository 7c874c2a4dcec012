"""A forward pass of our own for the architectures whose blocks it knows: the same numbers, less work.

Everything is computed by the model's own weights, or by its own modules where they are more than plain linear
layers (LoRA, quantised ones). What it saves: a shared prompt's keys and values are kept and read once, heads
that share a key are one attention, only the last position goes through the end of the last block, and no mask
is made where none is needed. Any other model goes through transformers' own forward; `why_not` says which.
"""

from steer_heal.generate.lean.known import why_not
from steer_heal.generate.lean.network import Network
from steer_heal.generate.lean.reader import LeanReader

__all__ = ["LeanReader", "Network", "why_not"]
