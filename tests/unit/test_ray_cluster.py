"""A cluster that cannot be had: one sentence each. Without Ray; with a real one, see tests/loop."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.runs.events import EventLog, read
from steer_heal.runs.jobs import LocalProcesses, Running
from steer_heal.runs.jobs.ray_cluster import RayCluster
from tests.runs import start


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(folder: Path, address: str) -> str:
    with pytest.raises(SettingsError) as refused:
        RayCluster(folder / "runs", address)
    assert not (folder / "runs").exists()
    return str(refused.value)


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'steer-heal[ray]'" in refusal(tmp_path, f"ray://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "ray://", "ray://host:port", "127.0.0.1:6379"])
def test_what_is_no_address_is_refused(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert "is no cluster" in refusal(tmp_path, address)


def test_an_address_that_nobody_answers_at_is_said_at_once(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_args: object, **_options: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=silent))
    assert "Nobody answers at" in refusal(tmp_path, f"ray://127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert "Nobody answers at" in refusal(tmp_path, f"ray://127.0.0.1:{closed}")


def test_other_versions_are_named(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*_args: object, **_options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=other))
    said = refusal(tmp_path, f"ray://127.0.0.1:{port}")
    assert "Ray: 2.59.0" in said
    assert "\n" not in said


def test_a_cluster_s_run_that_nobody_listens_to_is_no_lost_process_and_takes_no_place(jobs: LocalProcesses):
    folder = jobs.create(heal_settings(model="demo"), worker=Running(os.getpid(), 0.0, "ray://host:10001"))
    assert "sweep resume" in jobs.poll(folder.run_id).message
    folder.beat()
    state = jobs.poll(folder.run_id)
    assert (state.status, state.pid) == ("running", None)


def test_lines_of_another_log_are_taken_as_they_are(tmp_path: Path) -> None:
    with EventLog(tmp_path / "there.jsonl") as there:
        start(there, heal_settings(model="demo"))
    lines = (tmp_path / "there.jsonl").read_bytes()
    with EventLog(tmp_path / "here.jsonl") as here:
        here.take(lines)
        assert here.size == len(lines)
        here.append("finished", None, {})
    seqs = [event.seq for event in read(tmp_path / "here.jsonl").events]
    assert seqs == list(range(len(seqs)))
