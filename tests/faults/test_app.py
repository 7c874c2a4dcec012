"""The real app killed while a run goes on: the run neither stops nor is lost, and the next app shows it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from steer_heal.config import heal_settings
from steer_heal.runs.jobs import LocalProcesses
from tests.browser.conftest import ROOT, answers, free_port
from tests.jobs import until
from tests.rounds import OPEN

SMALL = {
    "data": {"n_answers": 32, "n_plain": 0, "min_kept": 2, "max_new_tokens": 12},
    "filter": OPEN,
    "train": {"epochs": 1},
    "evaluate": {"n_vignettes": 14, "n_answers": 2, "controls": 0},
}


class App:
    """`app.py` over one folder; `kill` gives it no time to say goodbye."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        places = ["--runs", str(folder / "runs"), "--db", str(folder / "runs.duckdb")]
        command = [sys.executable, "app.py", "--model", "demo", "--port", str(self.port), *places]
        with (folder / f"app-{self.port}.log").open("wb") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        until(lambda: answers(self.url) or self.process.poll() is not None)
        assert self.process.poll() is None

    def call(self, name: str, *data: Any) -> Any:
        path = f"/gradio_api/call/{name}"
        with httpx.Client(base_url=self.url, timeout=120) as client:
            event = client.post(path, json={"data": list(data)}).json()["event_id"]
            told = client.get(f"{path}/{event}").text
        assert "event: complete" in told, told
        return json.loads(told.split("event: complete\ndata: ")[1].splitlines()[0])[0]

    def run(self, run_id: str) -> dict[str, Any]:
        return next(row for row in self.call("runs") if row["run_id"] == run_id)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(app: App, run_id: str, *statuses: str) -> None:
    until(lambda: app.run(run_id)["status"] in statuses)


@pytest.mark.faults
def test_app_killed_while_a_run_goes_on(tmp_path: Path) -> None:
    """Two kills of the app; the run goes on through both, once, and is paused and cancelled by the third."""
    app = App(tmp_path)
    run_id = app.call("launch", "care_over_authority", 32, "quick", 0, "overnight", SMALL)
    wait_for(app, run_id, "running")
    record = tmp_path / "runs" / run_id / "process.json"
    worker = json.loads(record.read_text())["pid"]
    try:
        for _ in range(2):
            app.kill()
            seen = (record.parent / "events.jsonl").stat().st_size
            assert psutil.pid_exists(worker)
            app = App(tmp_path)
            wait_for(app, run_id, "running")
            assert json.loads(record.read_text())["pid"] == worker
            until(lambda: (record.parent / "events.jsonl").stat().st_size > seen)  # noqa: B023
        app.call("pause", run_id)
        wait_for(app, run_id, "paused")
        app.call("resume", run_id)
        app.call("cancel", run_id)
        wait_for(app, run_id, "cancelled")
    finally:
        app.kill()
        if psutil.pid_exists(worker):
            psutil.Process(worker).kill()
    kinds = [json.loads(line)["kind"] for line in (record.parent / "events.jsonl").read_text().splitlines()]
    assert (kinds.count("started"), kinds.count("resumed"), kinds[-1]) == (1, 0, "cancelled")


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.mark.faults
def test_worker_killed_for_want_of_memory(tmp_path: Path) -> None:
    """A real kill by the kernel becomes an event that says so."""
    group = CGROUP / f"steer-heal-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("40000000")
    except OSError:
        pytest.skip("a memory limit needs the right to make a control group")
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()));"
        "from steer_heal.runs.jobs import RunFolder; from pathlib import Path;"
        "RunFolder(Path(sys.argv[2])).beat(); held = []\n"
        "while True: held.append(bytearray(1_000_000))"
    )
    script = tmp_path / "greedy.py"
    script.write_text(code)
    jobs = LocalProcesses(
        tmp_path / "runs", command=(sys.executable, str(script), str(group / "cgroup.procs"))
    )
    try:
        run_id = jobs.start(heal_settings(model="demo"))
        until(lambda: jobs.poll(run_id).status == "interrupted")
        jobs.advance()
        last = jobs.folder(run_id).last_event()
        assert (last.kind, last.data["out_of_memory"]) == ("interrupted", True)
        assert last.data["signal"] == "SIGKILL"
        assert "want of memory" in last.data["message"]
    finally:
        time.sleep(0.2)
        group.rmdir()
