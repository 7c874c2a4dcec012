"""What the page costs on this machine: `python -m benchmarks.page [--json FILE] [--repeats N] [--model M]`.

One real server, one real headless browser, the bundled model. Medians; seconds, MB (10^6 bytes).
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
EXPECTED = {
    "start to page ready": "10 s",
    "slider to first steered words": "0.3 s",
    "60-token pair": "1.5 s",
    "profile of the vignette in view": "0.2 s",
    "one quick heal round": "120 s",
    "memory of the page's process": "1500 MB",
    "memory of the worker": "1500 MB",
}

# Move the slider in the page and wait for the first text that the old answer does not begin with.
FIRST_TOKEN = """async (alpha) => {
  const pane = document.querySelector('#steered-text');
  const range = document.querySelector('#alpha input[type=range]');
  const before = pane.innerText.trim();
  const begun = performance.now();
  range.value = alpha; range.dispatchEvent(new Event('input', { bubbles: true }));
  return await new Promise((done, fail) => {
    const look = () => {
      const now = pane.innerText.trim();
      if (!now || now === before || now.length >= 0.7 * before.length) return;
      watch.disconnect();
      done(performance.now() - begun);
    };
    const watch = new MutationObserver(look);
    watch.observe(pane, { childList: true, characterData: true, subtree: true });
    setTimeout(() => { watch.disconnect(); fail(new Error('no new token within 30 s')); }, 30000);
  });
}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def page_server(folder: Path, model: str) -> Iterator[tuple[str, psutil.Process, float]]:
    """The app as a process: its address, the process, and seconds until it answered."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "app.py", "--model", model, "--port", str(port)]
    command += ["--runs", str(folder / "runs"), "--db", str(folder / "runs.duckdb")]
    begun = time.perf_counter()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _answers(url):
                if server.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()[-2000:])
                time.sleep(0.05)
            yield url, psutil.Process(server.pid), time.perf_counter() - begun
        finally:
            server.terminate()
            server.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def _done(page: Page) -> None:
    page.wait_for_function(
        "document.querySelector('#status .sh-status')?.innerText.startsWith('done')", timeout=120_000
    )


def measure_page(folder: Path, model: str, repeats: int) -> dict[str, float]:
    """Start, download, first token after a move of the slider, memory."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    found: dict[str, float] = {}
    with page_server(folder, model) as (url, process, seconds), sync_playwright() as playwright:
        found["start to page ready"] = seconds
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        sizes = _count_downloads(page)
        begun = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#map .point", timeout=60_000)
        found["browser open to map drawn"] = time.perf_counter() - begun
        _done(page)
        found["browser open to first answer whole"] = time.perf_counter() - begun
        found["downloaded by the browser, compressed"] = sum(sizes) / 1e6
        first = []
        for number in range(repeats):
            first.append(page.evaluate(FIRST_TOKEN, str((0.5, 0.25, 0.75, -0.5)[number % 4])) / 1000)
            _done(page)
        found["slider to first steered words"] = statistics.median(first)
        found["memory of the page's process"] = process.memory_info().rss / 1e6
        browser.close()
    return found


def _count_downloads(page: Page) -> list[float]:
    sizes: list[float] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    return sizes


ENGINE = """
import json, sys, time
from statistics import median
from steer_heal.config import SampleSettings, SteerRequest
from steer_heal.engine import Engine
folder, model, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = Engine(model, runs_dir=folder + "/runs", db=folder + "/runs.duckdb")
text = engine.vignettes()[0].text
pairs, profiles, counts = [], [], []
for seed in range(repeats + 1):
    request = SteerRequest(prompt=f"{text} Tell me what you think.", alpha=0.5 + 0.1 * seed,
                           sample=SampleSettings(max_new_tokens=60, temperature=1.5, seed=seed))
    begun = time.perf_counter()
    frame = None
    for frame in engine.steer(request, session="bench"):
        pass
    pairs.append((time.perf_counter() - begun) * 60 / max(len(frame.base), len(frame.steered)))
    begun = time.perf_counter()
    engine.profile(request)
    profiles.append(time.perf_counter() - begun)
engine.close()
found = {"60-token pair": median(pairs[1:]), "profile of the vignette in view": median(profiles[1:])}
print(json.dumps(found))
"""


def measure_engine(folder: Path, model: str, repeats: int) -> dict[str, float]:
    """A pair of 60 tokens (base not cached; scaled up from the tokens written) and a profile."""
    command = [sys.executable, "-c", ENGINE, str(folder), model, str(repeats)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_heal(folder: Path, model: str) -> dict[str, float]:
    """One quick round as the command line runs it, from start to exit, and its peak memory."""
    command = [
        sys.executable,
        "-m",
        "steer_heal",
        "heal",
        "--model",
        model,
        "--rounds",
        "1",
        "--preset",
        "quick",
    ]
    command += ["--json", "--runs", str(folder / "heal"), "--db", str(folder / "heal.duckdb")]
    begun = time.perf_counter()
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = 0.0
    while running.poll() is None:
        peak = max(peak, _memory(running.pid))
        time.sleep(0.2)
    if running.returncode:
        raise RuntimeError(f"heal ended with {running.returncode}")
    return {"one quick heal round": time.perf_counter() - begun, "memory of the worker": peak}


def _memory(pid: int) -> float:
    """Largest resident set in the process's tree, MB."""
    try:
        parent = psutil.Process(pid)
        return max(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found |= measure_page(folder, args.model, args.repeats)
        found |= measure_engine(folder, args.model, args.repeats)
        found |= measure_heal(folder, args.model)
    width = max(map(len, found))
    for what, value in found.items():
        unit = "MB" if "memory" in what or "download" in what else "s"
        print(f"{what:<{width}}  {value:9.2f} {unit:<2}  expected about {EXPECTED.get(what, '-')}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
