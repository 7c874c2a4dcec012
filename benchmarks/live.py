"""What live steering costs: `python -m benchmarks.live [--models smollm2] [--repeats N] [--json FILE]`.

Each measure beside the one it is compared with, in one run, interleaved; medians over repeats. "One at a
time" is transformers' own `generate` with a plain forward hook, one row, times the number of rows. Long runs
can be taken in parts (`--only`), gathered in one JSON file.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.live_cases import GEMMA_SHAPE, PARTS, case, works
from benchmarks.live_report import Timing, claims, report
from benchmarks.memory import Peak
from steer_heal.config import DEMO, SMOLLM2
from steer_heal.generate import forward_used

NAMES = {DEMO: DEMO, "shape": GEMMA_SHAPE, SMOLLM2: SMOLLM2}


def time_all(
    jobs: dict[str, Callable[[], object]],
    repeats: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = True,
) -> dict[str, Timing]:
    """Every job once unmeasured when `warm`, then `repeats` rounds over all of them."""
    timings = {name: Timing() for name in jobs}
    for number in range(0 if warm else 1, repeats + 1):
        for name, job in jobs.items():
            with Peak() as peak:
                begun = clock()
                given = job()
                seconds = clock() - begun
            say(f"{'warm-up' if number == 0 else f'repeat {number}'}: {name}: {seconds:.2f} s")
            if number == 0:
                continue
            timings[name].seconds.append(seconds)
            timings[name].peak_mb = max(timings[name].peak_mb, peak.n_bytes / 1e6)
            for batch, a_step in given.items() if isinstance(given, dict) else ():
                timings.setdefault(batch, Timing()).per_step.append(a_step)
    return timings


def run(
    name: str, args: argparse.Namespace, known: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The measures asked for of one model, beside those known from earlier calls."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    subject = replace(case(NAMES[name], args.prompt, args.tokens), clock=clock)
    about = f"{NAMES[name]}: {subject.lm.info.dtype}, {args.prompt} + {args.tokens} tokens"
    say(f"{about}; {forward_used(subject.lm, subject.vector.directions_LD)}")
    parts = works(subject)
    jobs = {key: job for part in args.only or parts for key, job in parts[part].items()}
    jobs = {key: job for key, job in jobs.items() if key not in args.leave_out}
    timings = {key: Timing(**values) for key, values in known.get("timings", {}).items()}
    for key, timing in time_all(jobs, args.repeats, say, clock, warm=not args.cold).items():
        timings[key] = timings.get(key, Timing()).with_more(timing)
    made = claims(timings, subject.lm.name)
    print(report(about, timings, made), flush=True)
    return {
        "timings": {key: asdict(timing) for key, timing in timings.items()},
        "claims": [asdict(claim) for claim in made],
    }


def options() -> argparse.Namespace:
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
    parser.add_argument("--only", nargs="+", choices=PARTS, help="only these parts")
    parser.add_argument("--leave-out", nargs="+", default=(), help="names of measures, of those parts")
    parser.add_argument("--cold", action="store_true", help="no unmeasured round first")
    parser.add_argument("--json", type=Path, help="written; what it holds stays, repeats are added to it")
    return parser.parse_args()


def main() -> None:
    args = options()
    if args.threads:
        torch.set_num_threads(args.threads)
    document = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"models": {}}
    models = document["models"]
    for name in args.models:
        found = run(name, args, models.get(NAMES[name], {}), lambda line: print(line, flush=True))
        models[NAMES[name]] = found
        document |= {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cpu_time": args.cpu_time,
        }
        if args.json:
            args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
