"""The decode loop: many rows in one batch, each with its own steering, streamed token by token."""

from steer_heal.forward import PrefixStore, forward_used
from steer_heal.generate.loop import complete, decode
from steer_heal.generate.rows import Row
