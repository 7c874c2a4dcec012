"""Forks workers on a tiny model: reads run folders from stdin, answers each with a pid; see forked.py.

A process of its own, so that nobody forks a process that has threads. How each child ended is written to
`exit-PID` in the folder given as argument.
"""

import os
import select
import sys
from pathlib import Path

import torch

from steer_heal.runs import worker
from steer_heal.runs.jobs import RunFolder
from tests import tiny


class Nothing:
    """In the launcher's place: the test decides what is started next."""

    def advance(self) -> None:
        return


def work(folder: RunFolder) -> None:
    """Never returns."""
    code = 70
    try:
        with open(folder.worker_log, "ab", buffering=0) as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.setsid()
        code = worker.main([str(folder.path)])
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(into: Path) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        fresh = into / f".exit-{pid}"
        fresh.write_text(str(os.waitstatus_to_exitcode(status)))
        fresh.replace(into / f"exit-{pid}")


def main(into: Path) -> None:
    torch.set_num_threads(1)
    worker.models.load = lambda _name: tiny.language_model("llama", n_layers=4)  # type: ignore[assignment]
    worker.LocalProcesses = lambda *_a, **_k: Nothing()  # type: ignore[assignment,misc]
    print("ready", flush=True)
    while True:
        asked, _, _ = select.select([sys.stdin], [], [], 0.01)
        reap(into)
        if asked:
            line = sys.stdin.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                work(RunFolder(line.strip()))
            print(pid, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
