"""A sweep of 3 divergences x 3 seeds x 2 rounds on demo, here and on a Ray of two nodes of this machine.

`python -m benchmarks.sweeps [--seeds N] [--json FILE]`. Exit code 0 when every cell's numbers are the same,
bit for bit, with one thread for each run. Two runs go at once in both. What Ray costs: the whole sweep's
time, starts of processes and imports among it, and the median run's from its first word to its last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from steer_heal.config import RunSweep, axes
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import GOING, RunSweeps
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.jobs.ray_cluster import RayCluster
from steer_heal.runs.store import Store
from tests.loop.test_runs import small
from tests.ray_nodes import two_nodes
from tests.same import differing

LOOK_S = 0.5


def played(launcher: LocalProcesses, folder: Path, texts: list[str]) -> tuple[RunSweep, float]:
    """The sweep once all of it has ended, and how many seconds that took."""
    index = RunIndex(launcher, Store(folder / "runs.duckdb"), example=None, every_s=0.0)
    sweeps, began = RunSweeps(index, folder / "runs"), time.perf_counter()
    sweep = sweeps.start(small(2), axes.parse(texts))
    while any(state and state.status in GOING for state in sweeps.states(sweep)):
        index.watermark()
        time.sleep(LOOK_S)
    took = time.perf_counter() - began
    stand = [state.status if state else "none" for state in sweeps.states(sweep)]
    assert set(stand) == {"finished"}, stand
    return sweep, took


def pace(folder: Path, sweep: RunSweep) -> float:
    """Median seconds of a run, from its start in its process to its last word."""
    logs = [events.read(folder / "runs" / run_id / "events.jsonl").events for run_id in sweep.run_ids]
    begun = [next(event.time for event in log if event.kind == "started") for log in logs]
    return statistics.median(log[-1].time - then for log, then in zip(logs, begun, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    texts = ["train.divergence=nll,kl_fwd,kl_rev", f"seed=0..{args.seeds - 1}"]
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="sweeps-") as name:
        here, there = Path(name) / "here", Path(name) / "there"
        near, near_s = played(LocalProcesses(here / "runs", at_once=2), here, texts)
        with two_nodes() as nodes, closing(RayCluster(there / "runs", nodes.address)) as cluster:
            while cluster.places() < 2:
                time.sleep(LOOK_S)
            far, far_s = played(cluster, there, texts)
        apart = {
            axes.in_words(one.values): found
            for one, other in zip(near.cells, far.cells, strict=True)
            if (found := differing(here / "runs" / one.run_id, there / "runs" / other.run_id))
        }
        paces = pace(here, near), pace(there, far)
    found = {
        "cells": len(near.cells), "differing": apart, "local_s": near_s, "ray_s": far_s,
        "overhead": far_s / near_s - 1, "run_local_s": paces[0], "run_ray_s": paces[1],
        "run_overhead": paces[1] / paces[0] - 1,
    }  # fmt: skip
    print(f"{len(near.cells)} cells, {len(apart)} of them with other numbers on Ray {apart or ''}")
    print("| | local, s | Ray, s | overhead |\n| --- | --- | --- | --- |")
    print(f"| the sweep, two runs at once | {near_s:.1f} | {far_s:.1f} | {far_s / near_s - 1:+.1%} |")
    print(f"| the median run | {paces[0]:.1f} | {paces[1]:.1f} | {paces[1] / paces[0] - 1:+.1%} |")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))
    return int(bool(apart))


if __name__ == "__main__":
    sys.exit(main())
