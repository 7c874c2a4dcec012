"""Many people on one app: `python -m benchmarks.load [--sessions 1,5,20,50] [--profiles] [--json F]`.

The real app with the bundled model as a process of its own, asked over HTTP as a browser does; with and
without a heal run beside it. Every session has a prompt of its own and asks for one answer after another,
each with another alpha. To first token: from the click to the first steered token. Fairness: the slowest
session's median over the median session's. For memory: `benchmarks.load_soak`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from steer_heal import data

ROOT = Path(__file__).parents[1]
API = "/gradio_api"
TOKENS = 24
TRAIT = "care_over_authority"
PROMPTS = [vignette.text for vignette in data.material(demo=True).vignettes(condition="other_violate")]


@dataclass
class Session:
    """What one session saw: seconds to the first token and to the end of each answer, and what went wrong."""

    name: str = field(default_factory=lambda: uuid4().hex)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def app(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app's address and process; it and its workers are ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--model", "demo", "--port", str(port)]
    places = ["--runs", str(folder / "runs"), "--db", str(folder / "runs.duckdb")]
    with (folder / "app.log").open("wb") as out:
        server = subprocess.Popen([*command, *places], cwd=ROOT, stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server)
            yield url, psutil.Process(server.pid)
        finally:
            _end_runs(folder / "runs")
            server.terminate()
            server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 240
    while server.poll() is None and time.monotonic() < until:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise SystemExit("the app did not start")


def _end_runs(runs: Path) -> None:
    for record in runs.glob("*/process.json"):
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(json.loads(record.read_text())["pid"])
            if "steer_heal.runs.worker" in " ".join(worker.cmdline()):
                worker.kill()


def call(client: httpx.Client, name: str, *data: Any, session: str | None = None) -> Iterator[Any]:
    """What an endpoint streams. Raises: `RuntimeError` where it ends in an error."""
    asked = client.post(f"{API}/call/{name}", json={"data": list(data), "session_hash": session})
    asked.raise_for_status()
    with client.stream("GET", f"{API}/call/{name}/{asked.json()['event_id']}") as reply:
        kind = ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind in ("generating", "complete"):
                yield from json.loads(line.removeprefix("data: "))[:1]
            elif line.startswith("data: ") and kind == "error":
                raise RuntimeError(line[:200])


def ask(
    client: httpx.Client, seen: Session, number: int, prompt: str = PROMPTS[0], page: bool = False
) -> None:
    """One answer, as somebody who has moved the slider; `page`: and its profile, as the page asks for it."""
    began, first = time.monotonic(), None
    request = (0.5 + number % 7 * 0.25, TRAIT, 0.4, 0.6, TOKENS, number % 3, False, "mean_diff")
    try:
        for frame in call(client, "steer", prompt, *request, session=seen.name):
            if first is None and isinstance(frame, dict) and frame["steered"]:
                first = time.monotonic() - began
        if first is None:
            raise RuntimeError("no token came")
        seen.first.append(first)
        seen.whole.append(time.monotonic() - began)
        if page:
            list(call(client, "profile", prompt, *request[:4], "mean_diff", session=seen.name))
    except (httpx.HTTPError, RuntimeError) as error:
        seen.errors.append(f"{type(error).__name__}: {error}"[:200])


def watch(url: str, ended: threading.Event, errors: list[str], marks: list[float]) -> None:
    """An open page with nothing to do: the one value it asks for, every 1.5 seconds."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not ended.wait(1.5):
            began = time.monotonic()
            try:
                client.get("/ui/mark").raise_for_status()
                marks.append(time.monotonic() - began)
            except httpx.HTTPError as error:
                errors.append(f"mark: {error}"[:200])


def storm(url: str, sessions: int, seconds: float, *, page: bool = False) -> dict[str, Any]:
    """All sessions at once, once each has opened its page, until the time is over; each finishes the answer
    it is at."""
    seen = [Session() for _ in range(sessions)]
    marks: list[float] = []
    mark_errors: list[str] = []
    ended = threading.Event()
    opened = threading.Barrier(sessions)

    def work(mine: Session, offset: int) -> None:
        with httpx.Client(base_url=url, timeout=300) as client:
            list(call(client, "runs", session=mine.name))
            opened.wait()
            number, until = offset, time.monotonic() + seconds
            while time.monotonic() < until:
                ask(client, mine, number, PROMPTS[offset % len(PROMPTS)], page=page)
                number += 1

    threads = [threading.Thread(target=work, args=(one, index)) for index, one in enumerate(seen)]
    threads += [
        threading.Thread(target=watch, args=(url, ended, mark_errors, marks)) for _ in range(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads[:sessions]:
        thread.join()
    ended.set()
    for thread in threads[sessions:]:
        thread.join()
    return summary(seen, marks, mark_errors)


def summary(seen: list[Session], marks: list[float], mark_errors: list[str]) -> dict[str, Any]:
    """The figures of one storm."""
    first = sorted(value for one in seen for value in one.first)
    medians = [statistics.median(one.first) for one in seen if one.first]
    errors = [error for one in seen for error in one.errors] + mark_errors
    return {
        "sessions": len(seen),
        "answers": len(first),
        "errors": len(errors),
        "error": errors[:3],
        "starved": sum(not one.first for one in seen),
        "p50": quantile(first, 0.5),
        "p95": quantile(first, 0.95),
        "answer_p50": quantile(sorted(value for one in seen for value in one.whole), 0.5),
        "fairness": max(medians) / statistics.median(medians) if medians else None,
        "mark_p95": quantile(sorted(marks), 0.95),
    }


def quantile(values: list[float], share: float) -> float | None:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


def line(beside: str, found: dict[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    keys = ("p50", "p95", "answer_p50", "fairness", "mark_p95")
    cells = [str(found[key]) for key in ("sessions", "answers", "errors", "starved")]
    return "| " + " | ".join([*cells[:1], beside, *cells[1:], *(number(found[key]) for key in keys)]) + " |"


HEAD = (
    "| sessions | heal run | answers | errors | sessions without an answer | first token p50, s | p95, s "
    "| whole answer p50, s | fairness | mark p95, s |\n|" + " --- |" * 10
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", default="1,5,20,50")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each storm asks")
    parser.add_argument(
        "--profiles", action="store_true", help="measure each answer's profile, as the page does"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    sizes = [int(size) for size in args.sessions.split(",")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, app(Path(folder)) as (url, process):
        client = httpx.Client(base_url=url, timeout=300)
        ask(client, warm := Session(), 0)
        print(f"{os.cpu_count()} cores; one answer alone: {warm.whole or warm.errors}\n{HEAD}", flush=True)
        how = {"seconds": args.seconds, "page": args.profiles}
        rows += storms(url, process, "no", sizes, **how)
        launch(client)
        rows += storms(url, process, "yes", sizes, **how)
    if args.json:
        args.json.write_text(json.dumps({"storms": rows}, indent=2))


def storms(
    url: str, process: psutil.Process, beside: str, sizes: list[int], *, seconds: float, page: bool
) -> list[dict[str, Any]]:
    """One storm for each number of sessions, each a line of the table."""
    rows = []
    for sessions in sizes:
        found = storm(url, sessions, seconds, page=page)
        rows.append({"heal_run": beside, "rss_mb": process.memory_info().rss / 1e6, **found})
        print(line(beside, found), *found["error"], flush=True)
    return rows


def launch(client: httpx.Client) -> None:
    """Starts a long heal run and waits until it is at work."""
    (run_id,) = call(client, "launch", TRAIT, 32, "quick", 0, "beside the load", None)
    for _ in range(240):
        (rows,) = call(client, "runs")
        if any(row["run_id"] == run_id and row["status"] == "running" and row["stage"] for row in rows):
            return
        time.sleep(0.5)
    raise SystemExit("the heal run did not start")


if __name__ == "__main__":
    main()
