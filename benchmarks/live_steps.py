"""Live steering where whole answers take too long: `python -m benchmarks.live_steps [--models demo shape]`.

The first token and a median step are timed apart, by CPU time on one thread, and 64 tokens are reckoned as
the first plus 63 steps. Every work is timed once. Whole answers: `benchmarks.live`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.live import NAMES, table
from benchmarks.live_cases import Case, case, generate
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.steering import steer


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds to the first token and a step after it."""

    first: float
    step: float = 0.0

    def total(self, n_tokens: int) -> float:
        return self.first + (n_tokens - 1) * self.step


def ours(case: Case, rows: Sequence[Row], n_steps: int, store: PrefixStore | None = None) -> Cost:
    begun = time.process_time()
    steps = decode(case.lm, rows, case.vector.directions_LD, case.sample, store=store)
    next(steps)
    first, seconds = time.process_time() - begun, []
    for _ in range(n_steps):
        begun = time.process_time()
        next(steps)
        seconds.append(time.process_time() - begun)
    return Cost(first, statistics.median(seconds))


def theirs(case: Case, row_1L: Tensor, n_steps: int) -> Cost:
    """transformers' `generate` with a plain forward hook, one row."""
    seconds = []
    for n_new in (1, 1, 1 + n_steps):
        begun = time.process_time()
        generate(case, [case.prompt], row_1L, n_new)
        seconds.append(time.process_time() - begun)
    _, first, whole = seconds
    return Cost(first, (whole - first) / n_steps)


def prefill(case: Case, row_1L: Tensor) -> Cost:
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        with torch.inference_mode(), steer(case.lm.blocks, case.vector.directions_LD, row_1L):
            case.lm.model(input_ids=torch.tensor([case.prompt]), use_cache=True, logits_to_keep=1)
        seconds.append(time.process_time() - begun)
    return Cost(statistics.median(seconds))


def costs(case: Case, n_steps: int) -> dict[str, Cost]:
    """All works by name, printed as they come."""
    row_1L, store, found = case.at(2.0)[None], PrefixStore(), {}

    def keep(name: str, cost: Cost) -> None:
        found[name] = cost
        print(f"{name}: first token {cost.first:.3f} s, a step {1000 * cost.step:.1f} ms", flush=True)

    keep("prefill 1", prefill(case, row_1L))
    keep("generate 1", theirs(case, row_1L, n_steps))
    ours(case, [Row(case.prompt, case.at(1.0), shadow=True)], n_steps, store)
    keep("slider", ours(case, [Row(case.prompt, case.at(1.5), shadow=True)], n_steps, store))
    keep("base + steered", ours(case, case.rows(2), n_steps))
    keep("base + steered + shadow", ours(case, case.rows(2, shadow=True), n_steps))
    keep("9 rows", ours(case, case.rows(9), n_steps))
    keep("9 unsteered", ours(case, [Row(case.prompt, noise=number) for number in range(9)], n_steps))
    keep("17 rows", ours(case, case.rows(9, shadow=True), n_steps))
    return found


def ratios(found: dict[str, Cost], n_tokens: int) -> list[tuple[str, str]]:
    nine = 9 * found["generate 1"].total(n_tokens)
    steered, shadowed = found["base + steered"].step, found["base + steered + shadow"].step
    return [
        (
            "base + 8 alphas, times faster than 9 one at a time",
            f"{nine / found['9 rows'].total(n_tokens):.2f}",
        ),
        ("the same with 8 shadows", f"{nine / found['17 rows'].total(n_tokens):.2f}"),
        (
            "a step of 9 rows, 8 steered, to 9 unsteered",
            f"{found['9 rows'].step / found['9 unsteered'].step:.2f}",
        ),
        ("a step of base + steered + shadow to base + steered", f"{shadowed / steered:.2f}"),
        ("slider to first token to one prefill", f"{found['slider'].first / found['prefill 1'].first:.2f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=["shape"])
    parser.add_argument("--prompt", type=int, default=200, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens reckoned with")
    parser.add_argument("--steps", type=int, default=6, help="steps timed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in args.models:
        found = costs(case(NAMES[name], args.prompt, args.tokens), args.steps)
        made = ratios(found, args.tokens)
        print(table(made, (NAMES[name], "ratio")))
        results[NAMES[name]] = {"costs": {key: asdict(cost) for key, cost in found.items()}, "ratios": made}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
