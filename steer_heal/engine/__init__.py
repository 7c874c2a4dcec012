"""The face that the page and the command line call."""

from steer_heal.engine.face import Engine

__all__ = ["Engine"]
