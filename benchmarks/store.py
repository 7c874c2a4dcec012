"""A store of 10,000 rounds from 2,000 runs in 20 sweeps: what map, table and a sweep cost there.

`python -m benchmarks.store [--runs N] [--page] [--json FILE]`. Medians of seven, in milliseconds. With
`--page` also what a browser has to wait for, with that store and with an empty one in turn.
The logs hold what these queries read; the events of completions and steps, which lie in the table that the
views look through, are put into the store by the million with no log behind them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
from playwright.sync_api import sync_playwright

from steer_heal.config import LOCAL, Cell, RunSweep, axes, heal_settings
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import RunSweeps
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store
from tests.browser.conftest import app
from tests.runs import play_round, start

ROUNDS, CELLS = 5, 100
VISITS = 7
PAINTED = "performance.getEntriesByName('first-contentful-paint')"
DRAWN = "document.querySelector('#runs tbody tr')"
"""The table of runs; the map comes with it."""
FILLER = 180
"""Events of completions and steps a round, as `heal --preset quick` has them."""
VARIED = axes.parse([f"seed=0..{CELLS // 4 - 1}", "train.lam=0.25,0.5,1,2"])


def write(runs_dir: Path, runs: int) -> list[RunSweep]:
    """Finished runs' logs, and the sweeps that they are of."""
    base, cells, sweeps = heal_settings(model="demo", rounds=ROUNDS), axes.cells(VARIED), []
    for number in range(runs):
        sweep, cell = divmod(number, CELLS)
        folder = runs_dir / f"care-{number:05d}"
        folder.mkdir(parents=True)
        settings = axes.applied(base, cells[cell])
        (folder / "config.json").write_text(settings.model_dump_json())
        with EventLog(folder / "events.jsonl") as log:
            about = {"sweep": {"id": f"sweep-{sweep:03d}", "cell": cell, "values": cells[cell]}}
            log.append("queued", None, {"settings": settings.model_dump(mode="json"), **about})
            start(log, settings)
            for round_ in range(1, ROUNDS + 1):
                play_round(log, round_)
            log.append("finished", None, {"reason": "all rounds done"})
        if cell == 0:
            sweeps.append(
                RunSweep(
                    sweep_id=f"sweep-{sweep:03d}", at=float(sweep), cluster=LOCAL, budget=CELLS, axes=VARIED,
                    base=base.model_dump(mode="json"),
                    cells=tuple(
                        Cell(values=values, run_id=f"care-{sweep * CELLS + place:05d}")
                        for place, values in enumerate(cells)
                    ),
                )
            )  # fmt: skip
    (runs_dir / "sweeps").mkdir()
    for sweep in sweeps:
        (runs_dir / "sweeps" / f"{sweep.sweep_id}.json").write_text(sweep.model_dump_json())
    return sweeps


def fill(db: Path) -> None:
    """The events of which only that they were is in the store."""
    with duckdb.connect(str(db)) as connection:
        connection.execute(
            "INSERT INTO events SELECT run_id, 100000 + round * 1000 + n, 0.0, "
            "CASE WHEN n % 4 THEN 'completion' ELSE 'step' END, round, '{}' "
            "FROM rounds, range(?) AS events_of_it(n)",
            [FILLER],
        )


def timed(work: Callable[[], Any]) -> float:
    """Median milliseconds."""
    took = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - began))
    return statistics.median(took)


def measure(folder: Path, runs: int) -> list[dict[str, Any]]:
    """What is asked, how many rows came, and how long it took."""
    runs_dir, db = folder / "runs", folder / "runs.duckdb"
    sweeps = write(runs_dir, runs)
    store = Store(db)
    index = RunIndex(LocalProcesses(runs_dir, at_once=0), store, example=None, every_s=0.0)
    began = time.perf_counter()
    index.watermark()
    first = 1e3 * (time.perf_counter() - began)
    assert not index.message(), index.message()
    fill(db)
    index.watermark()
    ids = sweeps[0].run_ids
    page = RunIndex(LocalProcesses(runs_dir, at_once=0), store, example=None)  # looks as often as the page's
    page.watermark()
    found = RunSweeps(page, runs_dir)
    asked: dict[str, Callable[[], Any]] = {
        "map of 6 runs": lambda: store.moral_map(ids[:6]),
        f"map of a sweep's {CELLS} runs": lambda: store.moral_map(ids),
        "controls of 6 runs": lambda: store.controls(ids[:6]),
        "table of runs": store.runs,
        "a sweep's rows": lambda: store.sweep_cells(sweeps[0].sweep_id),
        "the list of sweeps": found.all,
        "a sweep's table, rows known": lambda: found.table(sweeps[0]),
        "a look with nothing new": index.watermark,
    }
    rows = [{"what": "all logs taken in, first look", "ms": first}]
    return rows + [{"what": what, "ms": timed(work)} for what, work in asked.items()]


def paints(folder: Path) -> dict[str, list[float]]:
    """Milliseconds from asking a page that is there for itself to its first paint, to map and table of runs,
    and the kilobytes of that table, each time that Debian's chromium opens it anew."""
    found: dict[str, list[float]] = {"first paint": [], "map and table": [], "table, kB": []}
    with app(folder, "--model", "demo") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(1 + VISITS):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(url)
            page.wait_for_function(DRAWN, polling="raf", timeout=120_000)
            drawn = page.evaluate("performance.now()")
            page.wait_for_function(f"{PAINTED}.length > 0")
            found["first paint"].append(page.evaluate(f"{PAINTED}[0].startTime"))
            found["map and table"].append(drawn)
            found["table, kB"].append(page.evaluate("document.querySelector('#runs').innerHTML.length") / 1e3)
            page.close()
        browser.close()
    return {what: took[1:] for what, took in found.items()}  # the first one waits for the model


def visited(folder: Path) -> list[dict[str, Any]]:
    """Of the page with the store in the folder and with an empty one, what each visit waits for."""
    rows = []
    with tempfile.TemporaryDirectory() as empty:
        for which, place in (("this store", folder), ("an empty one", Path(empty))):
            rows += [
                {"what": f"page with {which}: {what}", "ms": statistics.median(took), "each": took}
                for what, took in paints(place).items()
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, metavar="N")
    parser.add_argument("--page", action="store_true", help="what a browser waits for, too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    try:
        rows = [*measure(folder, args.runs), *(visited(folder) if args.page else ())]
        size = (folder / "runs.duckdb").stat().st_size / 1e6
    finally:
        shutil.rmtree(folder)
    print(f"{args.runs} runs, {args.runs * ROUNDS} rounds, {size:.0f} MB\n\n| query | ms |\n| --- | --- |")
    for row in rows:
        print(f"| {row['what']} | {row['ms']:.1f} |")
    if args.json:
        args.json.write_text(json.dumps({"runs": args.runs, "MB": size, "queries": rows}, indent=2))


if __name__ == "__main__":
    main()
