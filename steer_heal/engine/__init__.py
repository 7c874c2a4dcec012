"""The face that the page and the command line call; the network's libraries are imported with it only."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer_heal.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        return import_module("steer_heal.engine.engine").Engine
    raise AttributeError(name)
