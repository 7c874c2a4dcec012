"""Which optional packages are here, found without importing them."""

import importlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from steer_heal.config import SettingsError

STEERING_LITE = ("steering_lite",)
TINYMFV = ("tinymfv", "moralmaps")
"""Module names, the first that is installed counts: tinymfv was renamed."""
DISTRIBUTIONS = {"steering_lite": "steering-lite", "tinymfv": "tiny-mfv", "moralmaps": "moral-maps"}
SETS = ("classic", "scifi", "ai-actor")
"""Vignette sets of tinymfv."""
THINK_TOKENS = 64
"""How long its frame lets a model think, unless told otherwise."""
HOME = "https://github.com/wassname"
_SOURCES = {"steering_lite": f"git+{HOME}/steering-lite", "tinymfv": f"git+{HOME}/tinymfv"}


def name(modules: Sequence[str]) -> str | None:
    """The first of these modules that is installed."""
    return next((module for module in modules if find_spec(module) is not None), None)


def release(module: str) -> str:
    """The installed version, or "unknown" for a module on the path that was not installed."""
    try:
        return version(DISTRIBUTIONS.get(module, module))
    except PackageNotFoundError:
        return "unknown"


def load(modules: Sequence[str]) -> ModuleType:
    """The installed module. Errors: `SettingsError` when none is, or when it cannot be imported."""
    found = name(modules)
    if found is None:
        raise SettingsError(f"{modules[0]} is not installed: run `pip install {_SOURCES[modules[0]]}`.")
    try:
        return importlib.import_module(found)
    except ImportError as error:
        raise SettingsError(f"{found} is installed but cannot be imported: {error}.") from error
