"""The decode loop: many rows in one batch, each with its own steering, streamed token by token."""

from .loop import complete, decode
from .prefill import PrefixStore
from .rows import Row

__all__ = ["PrefixStore", "Row", "complete", "decode"]
