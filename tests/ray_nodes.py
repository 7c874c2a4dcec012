"""A real Ray of two nodes on this machine, each with one CPU."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil

from tests.browser.conftest import free_port
from tests.jobs import until


@dataclass
class Nodes:
    """`address`: for `RayCluster`; the second node may be killed, and the head be started anew."""

    address: str
    head: subprocess.Popen[bytes]
    second: subprocess.Popen[bytes]
    start_head: tuple[str, ...]
    folder: Path

    def restart_head(self) -> None:
        """Another cluster at the same address, of one node."""
        kill(self.head)
        kill(self.second)
        self.head = _node(self.folder, *self.start_head)
        _until_it_listens(int(self.address.rpartition(":")[2]))


def kill(process: subprocess.Popen[bytes]) -> None:
    """As when its power goes: all of the node at once."""
    gone = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (process, *gone):
        one.kill()
    process.wait()


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """One thread for each run; nothing is left behind."""
    port, client = free_port(), free_port()
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name,
        # Short: sockets lie in it. Of the head's forks for its clients gRPC's own handling kills some.
        patch.dict(os.environ, OMP_NUM_THREADS="1", RAY_TMPDIR=name, GRPC_ENABLE_FORK_SUPPORT="0"),
    ):
        folder = Path(name)
        start_head = (
            "--head", "--node-ip-address", "127.0.0.1", "--port", str(port),
            "--ray-client-server-port", str(client), "--include-dashboard", "false",
            "--min-worker-port", "0", "--max-worker-port", "0",
        )  # fmt: skip
        head = second = _node(folder, *start_head)
        nodes = None
        try:
            _until_it_listens(client)
            second = _node(folder, "--address", f"127.0.0.1:{port}", "--node-ip-address", "127.0.0.2")
            nodes = Nodes(f"ray://127.0.0.1:{client}", head, second, start_head, folder)
            yield nodes
        finally:
            for process in (second, nodes.head if nodes else head):
                kill(process)


def _node(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    start = "from ray.scripts.scripts import main; main()"
    command = [sys.executable, "-c", start, "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    with open(folder / f"node-{len(list(folder.iterdir()))}.log", "wb") as out:
        return subprocess.Popen([*command, *arguments], stdout=out, stderr=out)


def _until_it_listens(port: int) -> None:
    def listens() -> bool:
        found = psutil.net_connections("tcp")
        return any(one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in found)

    until(listens, every_s=0.2)
