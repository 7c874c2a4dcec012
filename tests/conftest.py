"""Shared by all tests: as many threads as TEST_THREADS says (1: the models are tiny), models, a browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any import of theirs: no test may reach for a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Servers and workers that tests start have a thread each too: several of them share the cores.
os.environ["OMP_NUM_THREADS"] = os.environ.setdefault("TEST_THREADS", "1")

import torch
from hypothesis import settings
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests import tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

torch.set_num_threads(int(os.environ["TEST_THREADS"]))
settings.register_profile("patient", deadline=None)  # a busy machine must not fail a test
settings.load_profile("patient")

# The folders whose files take longest, first: no process is left alone with one of them at the end.
LONGEST_FIRST = ("real", "browser", "loop", "golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install one to run the browser tests")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """One browser window for all tests of the usual size, so that scripts are fetched and compiled once."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    yield context
    context.close()
