"""Shared by the unit tests: a launcher whose workers are gone when the test is, the command line in an
empty folder, a store and a log, examples, and what the decode loop is asked for."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steer_heal import generate, models, sources
from steer_heal.cli import main
from steer_heal.engine import Engine, answer_batch
from steer_heal.heal import Example
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store
from tests import tiny
from tests.crowd import request
from tests.jobs import COMMAND
from tests.rounds import short_examples
from tests.runs import write_run


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all who do not test caches: a vector, a c*, a frame's worth are measured once."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, measured: Path) -> Iterator[Engine]:
    """On a tiny model whose answers are as long as asked for; its vector and c* are measured already."""
    folder = tmp_path_factory.mktemp("engine")
    places = {"runs_dir": folder / "runs", "db": folder / "runs.duckdb", "cache_dir": measured}
    made = Engine(lm=tiny.endless(), **places)
    list(made.steer(request("warm"), session="warm"))
    yield made
    made.close()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalProcesses]:
    launcher = LocalProcesses(tmp_path / "runs", command=COMMAND)
    yield launcher
    for run_id in launcher.runs():
        process = launcher.folder(run_id).process()
        if process is not None and process.pid != os.getpid() and launcher.folder(run_id).alive(process):
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def here(tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder that is empty but for the cache, and `tiny` is a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").symlink_to(measured)
    load, find = models.load, sources.find
    monkeypatch.setattr(sources, "find", lambda name: find("demo" if name == "tiny" else name))
    monkeypatch.setattr(
        models, "load", lambda name, **rest: tiny.shared() if name == "tiny" else load(name, **rest)
    )
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def told(run: Callable[..., tuple[int, str, str]]) -> Callable[..., Any]:
    """The JSON document of a command that goes well."""

    def call(*arguments: str) -> Any:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_run(tmp_path / "r1" / "events.jsonl", name="<script>", seed=7)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.duckdb", patience=0.2)


@pytest.fixture
def examples() -> list[Example]:
    return short_examples()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the decode loop was asked for."""
    counted: list[int] = []

    def decode(lm: Any, asked: Any, *rest: Any, **options: Any) -> Any:
        counted.append(len(asked))
        return generate.decode(lm, asked, *rest, **options)

    monkeypatch.setattr(answer_batch, "decode", decode)
    return counted
