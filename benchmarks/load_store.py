"""The store under load: `python -m benchmarks.load_store [--json FILE]`.

Ingest: events a second of logs as a worker writes them, a round at a time and all at once. The map's query
and the table of runs: at 10 runs, and at 10,000 rounds in 1,000 runs. A look: what an open page's one value
costs the app there, with nothing new. Medians, CPU time beside the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steer_heal.config import FOUNDATIONS, heal_settings
from steer_heal.engine.run_index import RunBook
from steer_heal.runs import events
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store

COMPLETIONS, STEPS, VIGNETTES = 128, 48, 98
SIZES = ((10, 3), (1000, 10))


def profile(stage: str, vignettes: int) -> dict[str, Any]:
    """A profile as a run writes it."""
    p = dict.fromkeys(FOUNDATIONS, 1 / 7)
    score = {"foundation": "Care", "score": p, "p": p, "mass": 0.99, "prefill_nll": 0.1, "order_tv": 0.01}
    text = {"perplexity": 1.5, "perplexity_ratio": 1.1, "repetition": 0.1, "looping": 0.0}
    each = [{"id": f"v{index}", **score} for index in range(vignettes)]
    return {
        "stage": stage, "alpha": 1.0, "p": p, "coherence": 0.99, "n_vignettes": vignettes, "text": text,
        "per_vignette": each,
    }  # fmt: skip


def write(path: Path, rounds: int, *, small: bool) -> Path:
    """A finished run's log; `small` leaves out all but what the map and the table show."""
    completions, steps, vignettes = (0, 0, 0) if small else (COMPLETIONS, STEPS, VIGNETTES)
    settings = heal_settings(model="demo", rounds=min(rounds, 32)).model_dump(mode="json")
    with EventLog(path) as log:
        log.append("started", None, {"settings": settings, "pid": 1, "host": "here"})
        log.append("profile", 0, profile("base", vignettes))
        for round_ in range(1, rounds + 1):
            for index in range(completions):
                made = {
                    "index": index,
                    "alpha": 1.5,
                    "prompt": "What would you do?",
                    "text": "I would help. " * 12,
                }
                log.append(
                    "completion", round_, {**made, "kept": True, "scores": {"repetition": 0.1}, "reasons": []}
                )
            for step in range(1, steps + 1):
                losses = {"loss": 1.0, "nll": 0.9, "divergence": 0.1, "lr": 1e-3}
                log.append("step", round_, {"step": step, "total": steps, **losses})
            log.append("profile", round_, profile("steered", vignettes))
            log.append("profile", round_, profile("healed", vignettes))
            log.append(
                "round", round_, {"retention": 0.8, "kept": 100, "made": 128, "c_star": 16.0, "seconds": 60.0}
            )
        log.append("finished", None, {"reason": "done"})
    return path


def timed(work: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds by the clock and of CPU."""
    clock, cpu = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return statistics.median(clock), statistics.median(cpu)


def ingest(folder: Path) -> list[dict[str, Any]]:
    """Events a second, whole logs of 3 rounds at once, and a round's share of the log at a time."""
    log = write(folder / "whole" / "events.jsonl", 3, small=False)
    chunk = events.read(log)
    stores = [Store(folder / f"{n}.duckdb") for n in range(3)]
    once = statistics.median(timed(lambda one=one: one.ingest("r10", chunk), 1)[0] for one in stores)
    pieced = Store(folder / "pieces.duckdb")
    third = len(chunk.events) // 3
    parts = [events.Chunk(chunk.events[at : at + third], at + 1) for at in range(0, len(chunk.events), third)]
    in_parts = timed(lambda: [pieced.ingest("r10", part) for part in parts], 1)[0]
    again = timed(lambda: stores[0].ingest("r10", chunk))[0]
    bytes_ = log.stat().st_size
    return [
        {"what": what, "events": len(chunk.events), "MB": bytes_ / 1e6, "seconds": seconds,
         "events_a_second": len(chunk.events) / seconds}
        for what, seconds in (
            ("3 rounds at once", once), ("a round at a time", in_parts), ("again, nothing new", again),
        )
    ]  # fmt: skip


def queries(folder: Path, runs: int, rounds: int) -> list[dict[str, Any]]:
    """The map's query, the table of runs and a look with nothing new."""
    runs_dir, store = folder / f"runs-{runs}", Store(folder / f"store-{runs}.duckdb")
    log = write(runs_dir / "care-0000" / "events.jsonl", rounds, small=True)
    body = log.read_bytes()
    for number in range(1, runs):
        path = runs_dir / f"care-{number:04d}" / "events.jsonl"
        path.parent.mkdir()
        path.write_bytes(body)
    book = RunBook(LocalProcesses(runs_dir, at_once=0), store, example=None, every_s=0.0)
    began = time.perf_counter()
    book.watermark()
    first = time.perf_counter() - began
    assert len(book.runs()) == runs, book.message()
    six = [f"care-{number:04d}" for number in range(6)]
    works = {
        "all logs taken in, first look": (first, None),
        "map of 6 runs": timed(lambda: store.moral_map(six)),
        "map of all runs": timed(store.moral_map),
        "table of runs": timed(store.runs),
        "a look with nothing new": timed(book.watermark),
    }
    return [
        {"what": what, "runs": runs, "rounds": runs * rounds, "ms": 1e3 * clock, "cpu_ms": cpu and 1e3 * cpu}
        for what, (clock, cpu) in works.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = ingest(folder)
        print("| ingest | events | MB | seconds | events a second |\n|" + " --- |" * 5)
        for row in taken:
            print("| {what} | {events} | {MB:.2f} | {seconds:.2f} | {events_a_second:.0f} |".format(**row))
        asked = [row for runs, rounds in SIZES for row in queries(folder, runs, rounds)]
        print("\n| query | runs | rounds | ms | of CPU |\n|" + " --- |" * 5)
        for row in asked:
            cpu = "-" if row["cpu_ms"] is None else f"{row['cpu_ms']:.1f}"
            print("| {what} | {runs} | {rounds} | {ms:.1f} | {cpu} |".format(**row, cpu=cpu))
    if args.json:
        args.json.write_text(json.dumps({"ingest": taken, "queries": asked}, indent=2))


if __name__ == "__main__":
    main()
