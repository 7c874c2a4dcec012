"""A real Ray of two nodes: a sweep there gives the numbers of one here, also when a node dies."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load_file

from steer_heal.config import axes
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import RunSweep, RunSweeps
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.jobs.ray_cluster import RayCluster
from steer_heal.runs.store import Store
from tests.jobs import until as until_looked
from tests.loop.test_runs import measured, small

ray = pytest.importorskip("ray", reason="steer-heal[ray] is not installed")
CELLS = ["train.divergence=nll,kl_fwd"]
until = partial(until_looked, every_s=0.5)
"""Who looks all the time leaves the runs no processor."""


@dataclass
class Cluster:
    address: str
    second: subprocess.Popen[bytes]


def node(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    start = "from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", start, "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    with open(home / f"node-{len(list(home.iterdir()))}.log", "wb") as out:
        return subprocess.Popen([*command, *arguments], stdout=out, stderr=out)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def kill(process: subprocess.Popen[bytes]) -> None:
    """As when its power goes: all of the node at once."""
    gone = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (process, *gone):
        one.kill()
    process.wait()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    port, client = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)  # short: sockets lie in it
        head = node(
            Path(folder), "--head", "--node-ip-address", "127.0.0.1", "--port", str(port),
            "--ray-client-server-port", str(client), "--include-dashboard", "false",
            "--min-worker-port", "0", "--max-worker-port", "0",
        )  # fmt: skip
        second = None
        try:
            until(lambda: listens(client))
            second = node(Path(folder), "--address", f"127.0.0.1:{port}", "--node-ip-address", "127.0.0.2")
            yield Cluster(f"ray://127.0.0.1:{client}", second)
        finally:
            for process in filter(None, (second, head)):
                kill(process)


def listens(port: int) -> bool:
    return any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in psutil.net_connections("tcp")
    )


def begin(launcher: LocalProcesses, folder: Path, where: str) -> tuple[RunIndex, RunSweeps, RunSweep]:
    index = RunIndex(launcher, Store(folder / "runs.duckdb"), example=None, every_s=0.0)
    sweeps = RunSweeps(index, folder / "runs")
    return index, sweeps, sweeps.start(small(2), axes.parse(CELLS), cluster=where)


def stand(index: RunIndex, sweeps: RunSweeps, sweep: RunSweep) -> list[str]:
    index.watermark()
    return [state.status if state else "none" for state in sweeps.states(sweep)]


@pytest.mark.timeout(900)
def test_a_sweep_on_two_nodes_of_which_one_dies_ends_like_one_here(cluster: Cluster, tmp_path: Path) -> None:
    there = RayCluster(tmp_path / "there" / "runs", cluster.address)
    until(lambda: sum(one["Alive"] for one in ray.nodes()) == 2)
    there.need(["demo"])
    index, sweeps, sweep = begin(there, tmp_path / "there", cluster.address)
    logs = [there.folder(cell.run_id).log for cell in sweep.cells]

    def second_round() -> bool:
        index.watermark()
        return all(any(event.round == 2 for event in events.read(log).events) for log in logs)

    until(second_round)
    kill(cluster.second)
    there.close()  # as if whoever listens were killed too, and others came
    anew = RayCluster(tmp_path / "there" / "runs", cluster.address)
    index = RunIndex(anew, Store(tmp_path / "there" / "runs.duckdb"), example=None, every_s=0.0)
    sweeps = RunSweeps(index, tmp_path / "there" / "runs")
    until(lambda: stand(index, sweeps, sweep) == ["finished", "finished"], 600.0)
    assert sum(any(event.kind == "resumed" for event in events.read(log).events) for log in logs) == 1
    assert [[event.seq for event in events.read(log).events] for log in logs] == [
        list(range(len(events.read(log).events))) for log in logs
    ]
    anew.close()

    here = tmp_path / "here"
    index, sweeps, other = begin(LocalProcesses(here / "runs"), here, "local")
    until(lambda: stand(index, sweeps, other) == ["finished", "finished"], 600.0)
    for cell, same in zip(sweep.cells, other.cells, strict=True):
        folders = [tmp_path / "there" / "runs" / cell.run_id, here / "runs" / same.run_id]
        ours, theirs = (sorted(map(repr, measured(folder / "events.jsonl"))) for folder in folders)
        assert ours == theirs
        made, again = (sorted(folder.rglob("round-*/*.safetensors")) for folder in folders)
        made += sorted(folders[0].glob("vectors/*"))
        again += sorted(folders[1].glob("vectors/*"))
        assert len(made) == 4
        for one, two in zip(made, again, strict=True):
            tensors, same_tensors = load_file(one), load_file(two)
            assert tensors.keys() == same_tensors.keys()
            assert all((tensors[key] == same_tensors[key]).all() for key in tensors)


@pytest.mark.timeout(600)
def test_a_run_there_is_paused_after_its_round_resumed_and_cancelled(
    cluster: Cluster, tmp_path: Path
) -> None:
    there = RayCluster(tmp_path / "runs", cluster.address)
    index = RunIndex(there, Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0)
    run_id = index.start(small(3))

    def kinds() -> list[str]:
        index.watermark()
        return [event.kind for event in there.events(run_id).events]

    until(lambda: "started" in kinds())
    index.pause(run_id)
    until(lambda: kinds()[-1] == "paused")
    assert there.poll(run_id).status == "paused"
    assert kinds()[-2] == "round"
    index.resume(run_id)
    until(lambda: "resumed" in kinds())
    index.cancel(run_id)
    until(lambda: kinds()[-1] == "cancelled")
    assert there.poll(run_id).status == "cancelled"
    assert (there.folder(run_id).path / "adapters" / "round-1" / "adapter_model.safetensors").exists()
    there.close()
