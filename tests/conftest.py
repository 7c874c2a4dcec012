"""Shared by all tests: as many threads as TEST_THREADS says (1: the models are tiny), the architectures."""

from __future__ import annotations

import os

import pytest

# Before any import of theirs: no test may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import torch

from tests import tiny

torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


@pytest.fixture(params=tiny.ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lm(arch: str):
    """A tiny model of each architecture in turn, shared: a test that changes it makes its own."""
    return tiny.shared(arch)
