"""From the timings of `benchmarks.live` to its claims, tables and figure."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

from steer_heal.config import SMOLLM2

GROWTH = (1, 2, 4, 8, 16, 32)
BARS = {"demo": (6, 5, 1), SMOLLM2: (6, 2.5, 1.6)}
"""By model, how many times faster nine rows and seventeen are to be than one at a time, nine than a batch."""
OTHER_BARS = (4, 2.5, 1)


@dataclass
class Timing:
    """Seconds of every repeat, seconds a step where there are steps, and the most memory above the start."""

    seconds: list[float] = field(default_factory=list)
    per_step: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def with_more(self, other: Timing) -> Timing:
        """The repeats of both."""
        most = max(self.peak_mb, other.peak_mb)
        return Timing(self.seconds + other.seconds, self.per_step + other.per_step, most)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def step(self) -> float:
        return median(self.per_step)


@dataclass(frozen=True)
class Claim:
    """A ratio, the bar it is held against, and whether it is met."""

    what: str
    ratio: float
    bar: str
    met: bool


def ratio(dear: Sequence[float], cheap: Sequence[float]) -> float:
    """Median over repeats of what one costs over the other within one repeat, where both had as many."""
    if len(dear) == len(cheap):
        return median(map(truediv, dear, cheap))
    return median(dear) / median(cheap)


def faster(what: str, times: int, slow: Timing, fast: Timing, bar: float) -> Claim:
    found = times * ratio(slow.seconds, fast.seconds)
    return Claim(what, found, f">= {bar:g}x faster", found >= bar)


def costs(what: str, found: float, bar: float) -> Claim:
    return Claim(what, found, f"<= {bar:g}x", found <= bar)


def claims(found: Mapping[str, Timing], doses: Mapping[str, int], model: str) -> list[Claim]:
    """The bars of the issue for which everything was timed. `doses`: how many each one-dose search takes."""
    nine, seventeen, batched = BARS.get(model, OTHER_BARS)
    answers = (
        ("base + 8 alphas against 9 one at a time", 9, "generate 1", "9 rows", nine),
        ("the same with 8 shadows, 17 rows", 9, "generate 1", "17 rows", seventeen),
        ("9 rows against 9 times one row through our own loop", 9, "1 row", "9 rows", 1),
        ("17 rows against 9 times one row through our own loop", 9, "1 row", "17 rows", 1),
        ("base + 8 alphas against a plain batch of generate", 1, "generate 9", "9 rows", batched),
    )
    searches = tuple(
        (f"calibration against {search}: {n} times {how}", n, how, "calibration", 4)
        for search, n in doses.items()
        for how in ("one dose, prompt by prompt", "one dose, prompts batched")
    )
    steps = (
        ("9 rows, 8 steered, to 9 unsteered of one prompt", "9 rows", "9 unsteered", 1.02),
        ("9 rows, 8 steered, to 9 unsteered, a prompt each", "9 rows", "9 unsteered, a prompt each", 1.02),
        ("base + steered + shadow to base + steered", "base + steered + shadow", "base + steered", 1.25),
    )
    made = [
        faster(what, times, found[slow], found[fast], bar)
        for what, times, slow, fast, bar in answers
        if {slow, fast} <= found.keys()
    ]
    for what, dear, cheap, bar in steps if "steps" in found else ():
        made.append(costs(f"a step of {what}", ratio(found[dear].per_step, found[cheap].per_step), bar))
    for prefill in ("prefill 1, transformers", "prefill 1, ours"):
        if {"slider", prefill} <= found.keys():
            cost = ratio(found["slider"].seconds, found[prefill].seconds)
            made.append(costs(f"slider to first token to one {prefill}", cost, 1.2))
    return made + [
        faster(what, times, found[slow], found[fast], bar)
        for what, times, slow, fast, bar in searches
        if {slow, fast} <= found.keys()
    ]


def growth(found: Mapping[str, Timing]) -> dict[int, float]:
    """Median seconds to write 1, 2, 4 ... rows, as far as they were timed."""
    others = {"1 row": 1, "base + steered": 2, "9 rows": 9}
    names = others | {f"{n} rows in all": n for n in GROWTH}
    made = {n: found[name].median for name, n in names.items() if name in found}
    return dict(sorted(made.items()))


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str]) -> str:
    """Plain text as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines)


def report(name: str, found: Mapping[str, Timing], made: Sequence[Claim]) -> str:
    """Both tables of one model."""
    shown = [
        (
            key,
            f"{t.median:.3f}" if t.seconds else "",
            f"{1000 * t.step:.2f}" if t.per_step else "",
            f"{t.peak_mb:.0f}" if t.seconds else "",
        )
        for key, t in found.items()
    ]
    held = [(c.what, f"{c.ratio:.2f}", c.bar, "yes" if c.met else "no") for c in made]
    parts = [f"\n{name}", table(shown, ("what", "seconds", "ms a step", "peak MB"))]
    return "\n\n".join([*parts, table(held, ("what", "ratio", "bar", "met"))])


def figure(grown: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Time against rows, each model against its own one row: a page, or a picture where the name says PNG."""
    drawn = go.Figure()
    for name, seconds in grown.items():
        ratios = [value / seconds[1] for value in seconds.values()]
        drawn.add_scatter(x=list(seconds), y=ratios, mode="lines+markers", name=name)
    drawn.add_scatter(x=list(GROWTH), y=list(GROWTH), mode="lines", name="one at a time", line_dash="dot")
    drawn.update_layout(
        template="plotly_white", width=720, height=420, margin={"l": 60, "r": 20, "t": 20, "b": 50}
    )
    drawn.update_xaxes(type="log", title="rows", tickvals=list(GROWTH))
    drawn.update_yaxes(type="log", title="time to write all rows / one row", tickvals=list(GROWTH))
    if path.suffix != ".png":
        drawn.write_html(path, include_plotlyjs="cdn")
        return
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "growth.html"
        drawn.write_html(page_file, include_plotlyjs=True)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"],
        )
        page = browser.new_page(viewport={"width": 740, "height": 440})
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg")
        page.screenshot(path=str(path))
        browser.close()
