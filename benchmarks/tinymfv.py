"""The forced choice against tinymfv's own: equal numbers, and how much faster.

`python -m benchmarks.tinymfv [--model demo] [--vignettes 16] [--think 0 64] [--json FILE]`. Needs tinymfv
(moral-maps) installed. Both score the same vignettes with the same frame in float32, in one process, in turn,
after a warm-up; times are medians. To tinymfv the budgets 0 and 1 read the same, no thought; it refuses 0
itself and is given 1. Its numbers are taken one vignette at a time for the comparison: in a padded batch it
numbers positions wrongly, and the largest shift that makes is printed. Times are CPU seconds of the process,
so that other work on the machine does not count; tinymfv runs at its own default batch of 8 and at 32, and
once as it comes, with the free text it writes to its log. How much faster: the faster of its two batches over
ours, turn by turn, their median, least and most. At most: the same over the time that the matrix products of
ours take by themselves, which is what no other way of doing them could pass.

`--model "gemma-3-1b shape"`: that model's shape with random weights, which take 4 GB in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from benchmarks import products
from benchmarks.live_cases import GEMMA_SHAPE, gemma_shape
from steer_heal import instrument
from steer_heal.config import DEMO
from steer_heal.evaluate import tinymfv
from steer_heal.models import LanguageModel, load
from steer_heal.records import Profile, VignetteScore
from steer_heal.vectors.bridges import installed

T = TypeVar("T")
BATCH = {False: 8, True: 64}
"""Rows at once, without and with a thought: reading is bound by cache, writing by its steps."""


def main() -> int:
    """0 when the numbers agree, 1 when not; says so and gives 0 when tinymfv is not here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--vignettes", type=int, default=16)
    parser.add_argument("--think", type=int, nargs="+", default=[0, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not tinymfv.available():
        print("tinymfv (moral-maps) is not installed: there is nothing to compare with.")
        return 0
    torch.set_num_threads(args.threads)
    lm = gemma_shape(torch.float32) if args.model == GEMMA_SHAPE else load(args.model, dtype="float32")
    installed.load(["loguru"]).logger.remove()
    rows = [compare(lm, think, args.vignettes, args.repeats) for think in args.think]
    for row in rows:
        print(line(row))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["largest_difference"] < 1e-4 for row in rows) else 1


def compare(lm: LanguageModel, think: int, n: int, repeats: int) -> dict[str, Any]:
    """Differences and seconds for one think budget."""
    vignettes, frame, rows = tinymfv.vignettes()[:n], tinymfv.frame(think), BATCH[think > 1]

    def theirs(batch_size: int, *, demo: bool = False) -> Profile:
        budget = max(1, think)
        return tinymfv.evaluate(lm, limit=n, think_tokens=budget, batch_size=batch_size, demo=demo)

    def ours() -> Profile:
        return instrument.evaluate(lm, vignettes, frame, batch_size=rows)[0]

    one_by_one, profile, padded = theirs(1), ours(), theirs(8)
    ways = [ours, lambda: theirs(8), lambda: theirs(32), products.alone(products.shapes(ours))]
    taken = [[timed(way)[0] for way in ways] for _ in range(repeats)]
    seconds, at_8, at_32, alone = (median(column) for column in zip(*taken, strict=True))
    times_faster = [min(theirs_8, theirs_32) / own for own, theirs_8, theirs_32, _ in taken]
    at_most = [min(theirs_8, theirs_32) / bare for _, theirs_8, theirs_32, bare in taken]
    as_it_comes, _ = timed(lambda: theirs(8, demo=True))
    pairs = list(zip(profile.per_vignette, one_by_one.per_vignette, strict=True))
    shifts = list(zip(padded.per_vignette, one_by_one.per_vignette, strict=True))
    return {
        "model": lm.name,
        "think": think,
        "vignettes": n,
        "repeats": repeats,
        "largest_difference": max(difference(a, b) for a, b in pairs),
        "padding_shift_of_theirs": max(difference(a, b) for a, b in shifts),
        "unanswered_of_theirs": one_by_one.n_invalid,
        "seconds_ours": seconds,
        "seconds_theirs_batch_8": at_8,
        "seconds_theirs_batch_32": at_32,
        "seconds_theirs_as_it_comes": as_it_comes,
        "seconds_products_of_ours_alone": alone,
        "times_faster": median(times_faster),
        "times_faster_least": min(times_faster),
        "times_faster_most": max(times_faster),
        "times_faster_at_most": median(at_most),
    }


def difference(ours: VignetteScore, theirs: VignetteScore) -> float:
    """The largest of score, p, allowed mass and prefill NLL; a vignette they could not answer is left out."""
    if theirs.mass == 0.0:
        return 0.0
    gaps = [abs(ours.score[key] - theirs.score[key]) for key in ours.score]
    gaps += [abs(ours.p[key] - theirs.p[key]) for key in ours.p]
    return max(*gaps, abs(ours.mass - theirs.mass), abs(ours.prefill_nll - theirs.prefill_nll))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of the process (wall seconds where a device does the work), and what came of it."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - began, result


def line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{key.removeprefix('seconds_')} {value:.2f} s" for key, value in row.items()
                      if key.startswith("seconds"))  # fmt: skip
    return (
        f"think {row['think']}, {row['vignettes']} vignettes: largest difference "
        f"{row['largest_difference']:.1e} (padding moves theirs by {row['padding_shift_of_theirs']:.2g}); "
        f"{times}: {row['times_faster']:.2f} times faster "
        f"({row['times_faster_least']:.2f} to {row['times_faster_most']:.2f}), "
        f"at most {row['times_faster_at_most']:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
