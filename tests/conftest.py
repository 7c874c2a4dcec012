"""Shared by all tests: as many threads as TEST_THREADS says (1: the models are tiny), the architectures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any import of theirs: no test may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch

from tests import tiny

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model but the demo is on this machine, whatever its user has fetched or converted."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STEER_HEAL_HOME", str(folder))
    return folder


@pytest.fixture(params=tiny.ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lm(arch: str):
    """A tiny model of each architecture in turn, shared: a test that changes it makes its own."""
    return tiny.shared(arch)
