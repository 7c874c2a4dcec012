"""The decode loop: many rows in one batch, each with its own steering, streamed token by token."""

from .loop import complete, decode
from .reading import forward_used
from .rows import Row
from .store import PrefixStore

__all__ = ["PrefixStore", "Row", "complete", "decode", "forward_used"]
