"""What live steering costs: `python -m benchmarks.live [--models demo shape] [--repeats N] [--json FILE]`.

Each measure beside the one it is compared with, in one run, interleaved; medians over repeats. "One at a
time" is transformers' own `generate` with a plain forward hook, one row, times the number of rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import psutil
import torch
import transformers

from benchmarks.live_cases import GEMMA_SHAPE, Case, bisection_steps, case, works, write

GROWTH = (1, 2, 4, 8, 16, 32)
NAMES = {"demo": "demo", "shape": GEMMA_SHAPE}


@dataclass
class Timing:
    """Seconds of every repeat, seconds a step where there are steps, and the most memory above the start."""

    seconds: list[float] = field(default_factory=list)
    per_step: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def step(self) -> float:
        return statistics.median(self.per_step)


@dataclass(frozen=True)
class Claim:
    """A ratio, the bar it is held against, and whether it is met."""

    model: str
    what: str
    ratio: float
    bar: str
    met: bool


class Peak:
    """The most resident memory of this process while the context lasts, above what it began with, in MB."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._begun = self._most = self._process.memory_info().rss
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    @property
    def mb(self) -> float:
        return (self._most - self._begun) / 1e6


def time_all(
    jobs: dict[str, Callable[[], object]],
    repeats: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Every job once unmeasured, then `repeats` rounds over all of them."""
    timings = {name: Timing() for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            with Peak() as peak:
                begun = clock()
                given = job()
                seconds = clock() - begun
            say(f"{'warm-up' if number == 0 else f'repeat {number}'}: {name}: {seconds:.2f} s")
            if number == 0:
                continue
            timings[name].seconds.append(seconds)
            timings[name].peak_mb = max(timings[name].peak_mb, peak.mb)
            if isinstance(given, float):
                timings[name].per_step.append(given)
    return timings


def claims(model: str, found: dict[str, Timing], doses: int, *, demo: bool) -> list[Claim]:
    """The bars of the issue."""

    def faster(what: str, slow: float, fast: str, bar: float) -> Claim:
        ratio = slow / found[fast].median
        return Claim(model, what, ratio, f">= {bar:g}x faster", ratio >= bar)

    def costs(what: str, ratio: float, bar: float) -> Claim:
        return Claim(model, what, ratio, f"<= {bar:g}x", ratio <= bar)

    nine = 9 * found["generate 1"].median
    dose, apart = found["one dose"].median, found["one dose, prompt by prompt"].median
    return [
        faster("base + 8 alphas against 9 one at a time", nine, "9 rows", 6 if demo else 4),
        faster("the same with 8 shadows against 9 one at a time", nine, "17 rows", 5 if demo else 2.5),
        faster("base + 8 alphas against a plain batch of generate", found["generate 9"].median, "9 rows", 1),
        costs(
            "a step of 9 rows, 8 steered, to 9 unsteered",
            found["9 rows"].step / found["9 unsteered"].step,
            1.02,
        ),
        costs(
            "a step of base + steered + shadow to base + steered",
            found["base + steered + shadow"].step / found["base + steered"].step,
            1.25,
        ),
        costs(
            "slider to first token to one prefill of one row",
            found["slider"].median / found["prefill 1"].median,
            1.2,
        ),
        faster("calibration against one dose at a time, prompts batched", doses * dose, "calibration", 4),
        faster("calibration against one dose and prompt at a time", doses * apart, "calibration", 4),
    ]


def growth(subject: Case, repeats: int) -> dict[int, float]:
    """Median seconds to write 1, 2, 4 ... rows."""
    made: dict[int, float] = {}
    for n in GROWTH:
        seconds = []
        for _ in range(repeats):
            begun = subject.clock()
            write(subject, subject.rows(n))
            seconds.append(subject.clock() - begun)
        made[n] = statistics.median(seconds)
    return made


def figure(grown: dict[str, dict[int, float]], path: Path) -> None:
    """Time against rows, each model against its own one row."""
    drawn = go.Figure()
    for name, seconds in grown.items():
        ratios = [value / seconds[1] for value in seconds.values()]
        drawn.add_scatter(x=list(seconds), y=ratios, mode="lines+markers", name=name)
    drawn.add_scatter(x=list(GROWTH), y=list(GROWTH), mode="lines", name="one at a time", line_dash="dot")
    drawn.update_xaxes(type="log", title="rows", tickvals=list(GROWTH))
    drawn.update_yaxes(type="log", title="time to write all rows / time to write one")
    drawn.write_html(path, include_plotlyjs="cdn")


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def run(name: str, args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All measures of one model."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    subject = replace(case(NAMES[name], args.prompt, args.tokens), clock=clock)
    jobs = {key: job for key, job in works(subject).items() if not args.only or key in args.only}
    found = time_all(jobs, args.repeats, say, clock)
    shown = [
        (key, f"{t.median:.3f}", f"{1000 * t.step:.1f}" if t.per_step else "", f"{t.peak_mb:.0f}")
        for key, t in found.items()
    ]
    print(f"\n{NAMES[name]}: {subject.lm.info.dtype}, {args.prompt} + {args.tokens} tokens")
    print(table(shown, ("what", "seconds", "ms a step", "peak MB")))
    result: dict[str, Any] = {"model": NAMES[name], "timings": {key: asdict(t) for key, t in found.items()}}
    if not args.only:
        made = claims(NAMES[name], found, bisection_steps(subject.calibration), demo=subject.lm.is_demo)
        print(
            table(
                [(c.what, f"{c.ratio:.2f}", c.bar, "yes" if c.met else "NO") for c in made],
                ("claim", "ratio", "bar", "met"),
            )
        )
        result["claims"] = [asdict(claim) for claim in made]
        result["growth"] = growth(subject, args.repeats)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=200, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--threads", type=int, help="torch's own choice when none")
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU seconds, for a busy machine: --threads 1"
    )
    parser.add_argument("--only", nargs="+", help="only these measures (no claims, no figure)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="an HTML file: time against rows")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results = [run(name, args, lambda line: print(line, flush=True)) for name in args.models]
    if args.figure and not args.only:
        figure({result["model"]: result["growth"] for result in results}, args.figure)
    if args.json:
        where = {"cpu": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        about = {
            **where,
            "transformers": transformers.__version__,
            "repeats": args.repeats,
            "cpu_time": args.cpu_time,
        }
        args.json.write_text(json.dumps({**about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
