"""The decode loop: many rows in one batch, each with its own steering, streamed token by token."""

from steer_heal.forward import PrefixStore
from steer_heal.generate.loop import complete, decode
from steer_heal.generate.rows import Row
