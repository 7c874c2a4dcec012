"""From the process's start to the first words: `python -m benchmarks.start [--checkouts DIR ...]`.

Starts the page of each checkout in turn, opens it in Debian's chromium (which has its share of the cores),
and prints the seconds to the page, base's first words and the steered answer's; medians last, and of several
checkouts their ratio to the first.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Error, sync_playwright

from tests.browser.conftest import free_port

READABLE = "(id) => document.getElementById(id)?.innerText.trim().length > 3"
STAGES = ("page", "base", "steered")


def first_words(browser: Browser, checkout: Path, model: str) -> dict[str, float]:
    """Seconds from the process's start to each of `STAGES`."""
    port = free_port()
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"--runs={folder}/runs", f"--db={folder}/runs.duckdb"]
        command = [sys.executable, "app.py", f"--model={model}", f"--port={port}", *kept]
        start = time.perf_counter()
        server = subprocess.Popen(command, cwd=checkout, stdout=subprocess.DEVNULL)
        seconds = {}
        try:
            while "page" not in seconds:
                try:
                    page.goto(f"http://127.0.0.1:{port}")
                    seconds["page"] = time.perf_counter() - start
                except Error:
                    if server.poll() is not None:
                        raise
                    time.sleep(0.1)
            for stage in STAGES[1:]:
                page.wait_for_function(READABLE, arg=f"{stage}-text", polling=50, timeout=120_000)
                seconds[stage] = time.perf_counter() - start
        finally:
            page.close()
            server.terminate()
            server.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    taken: dict[Path, list[dict[str, float]]] = {checkout: [] for checkout in args.checkouts}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(args.starts):
            for checkout, rows in taken.items():
                rows.append(first_words(browser, checkout.absolute(), args.model))
                print(checkout, " ".join(f"{stage} {rows[-1][stage]:.1f} s" for stage in STAGES), flush=True)
    medians = {
        checkout: [statistics.median(row[stage] for row in rows) for stage in STAGES]
        for checkout, rows in taken.items()
    }
    first = next(iter(medians.values()))
    for checkout, found in medians.items():
        said = (
            f"{name} {x:.1f} s ({x / one:.2f})" for name, x, one in zip(STAGES, found, first, strict=True)
        )
        print("median", checkout, " ".join(said))


if __name__ == "__main__":
    main()
