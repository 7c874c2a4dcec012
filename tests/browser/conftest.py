"""A real server as a process and a real headless browser."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import BrowserContext, Error, Page, Request, expect

from tests.jobs import until

ROOT = Path(__file__).parents[2]
expect.set_options(timeout=30_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@contextmanager
def serving(*command: str, port: int, log: Path) -> Iterator[str]:
    """Run `command` with this Python until its page answers; kill it afterwards. Fails with its log."""
    url = f"http://127.0.0.1:{port}/"
    with log.open("wb") as out:
        server = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            until(lambda: answers(url) or server.poll() is not None, every_s=0.2)
            assert server.poll() is None, f"the page did not start:\n{log.read_text()[-4000:]}"
            yield url
        finally:
            server.kill()  # asked to end, it would wait for open pages
            server.wait()


@contextmanager
def app(folder: Path, *options: str) -> Iterator[str]:
    """The real page, over runs and a store in the folder."""
    port = free_port()
    where = ("--port", str(port), "--runs", str(folder / "runs"), "--db", str(folder / "runs.duckdb"))
    with serving("app.py", *where, *options, port=port, log=folder / "app.log") as url:
        yield url


@contextmanager
def fake_page(folder: Path, *how: str, port: int = 0) -> Iterator[str]:
    """The page over the fake engine, how fast and with how many runs as `serve_fake` is told: its address."""
    port = port or free_port()
    served = ("-m", "tests.browser.serve_fake", str(port), *how)
    with serving(*served, port=port, log=folder / "server.log") as url:
        yield url


@contextmanager
def app_page(window: BrowserContext, folder: Path, *options: str, view: str = "") -> Iterator[Page]:
    """The real page, open in the browser on that view, with nothing remembered afterwards."""
    with app(folder, *options) as url, window.new_page() as page:
        page.set_default_timeout(120_000)
        page.goto(f"{url}{view}")
        yield page
        page.evaluate("localStorage.clear()")


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with fake_page(tmp_path_factory.mktemp("fake"), "2") as url:
        yield url


@pytest.fixture(scope="session")
def tab(window: BrowserContext) -> Page:
    """One tab for many tests: what the browser has compiled for it once need not be compiled again."""
    return window.new_page()


def sized(tab: Page, url: str, width: int, height: int, scheme: Literal["light", "dark"]) -> Iterator[Page]:
    """`opened` in the tab, of that size in px."""
    usual = tab.viewport_size
    tab.set_viewport_size({"width": width, "height": height})
    tab.emulate_media(color_scheme=scheme)
    try:
        yield from opened(tab, url)
    finally:
        tab.emulate_media(color_scheme="null")
        if usual:
            tab.set_viewport_size(usual)


def opened(page: Page, url: str) -> Iterator[Page]:
    """The page with nothing remembered. Errors in it and requests elsewhere fail the test."""
    page.set_default_timeout(60_000)
    wrong: list[str] = []

    def failed(error: Error) -> None:
        wrong.append(f"uncaught: {error}")

    def asked(request: Request) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(f"asked {request.url}")

    page.on("pageerror", failed)
    page.on("request", asked)
    page.goto(url)
    page.wait_for_selector("#map .point")
    finished(page)
    yield page
    page.goto(f"{url}ui/stream.js")  # no script of the page remembers anything any more
    page.evaluate("localStorage.clear()")
    page.remove_listener("pageerror", failed)
    page.remove_listener("request", asked)
    assert not wrong, wrong


def finished(page: Page) -> None:
    """Wait until the answer in view is whole."""
    page.wait_for_function("document.querySelector('#status .sh-status')?.innerText.startsWith('done')")


@pytest.fixture
def page(tab: Page, fake: str) -> Iterator[Page]:
    yield from opened(tab, fake)
