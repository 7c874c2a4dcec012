"""From the timings of `benchmarks.live` to its claims and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import truediv
from statistics import median
from typing import Any

from steer_heal.config import SMOLLM2

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


def claims(found: Mapping[str, Timing], model: str) -> list[Claim]:
    """The bars of the issue for which everything was timed."""
    nine, seventeen, batched = BARS.get(model, OTHER_BARS)
    answers = (
        ("base + 8 alphas against 9 one at a time", 9, "generate 1", "9 rows", nine),
        ("the same with 8 shadows, 17 rows", 9, "generate 1", "17 rows", seventeen),
        ("9 rows against 9 times one row through our own loop", 9, "1 row", "9 rows", 1),
        ("17 rows against 9 times one row through our own loop", 9, "1 row", "17 rows", 1),
        ("base + 8 alphas against a plain batch of generate", 1, "generate 9", "9 rows", batched),
    )
    steps = (
        ("9 rows, 8 steered, to 9 unsteered of one prompt", "9 rows", "9 unsteered", 1.02),
        ("9 rows, 8 steered, to 9 unsteered, a prompt each", "9 rows", "9 unsteered, a prompt each", 1.02),
        ("base + steered + shadow to base + steered", "base + steered + shadow", "base + steered", 1.25),
        ("a row of 4 vectors to a row of one", "1 of 4 vectors", "1 steered", 1.05),
        (
            "a row of 4 vectors, one ablated, to a row of one",
            "1 of 4 vectors, one ablated",
            "1 steered",
            1.05,
        ),
        ("a gated row to one that is not", "1 gated", "1 steered", 1.05),
    )
    made = [
        faster(what, times, found[slow], found[fast], bar)
        for what, times, slow, fast, bar in answers
        if {slow, fast} <= found.keys()
    ]
    for what, dear, cheap, bar in [row for row in steps if {row[1], row[2]} <= found.keys()]:
        made.append(costs(f"a step of {what}", ratio(found[dear].per_step, found[cheap].per_step), bar))
    for prefill in ("prefill 1, transformers", "prefill 1, ours"):
        if {"slider", prefill} <= found.keys():
            cost = ratio(found["slider"].seconds, found[prefill].seconds)
            made.append(costs(f"slider to first token to one {prefill}", cost, 1.2))
    return made


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
