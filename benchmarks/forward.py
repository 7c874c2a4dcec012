"""Our forward pass against transformers' own, in one run: `python -m benchmarks.forward --model smollm2`.

What goes through the door to the network: prompts, steps, evaluations, log-probs of texts, training. The
plain side is the same call with a hook that does nothing on the model, which our blocks refuse; of a training
step it is the loss as one would write it first. Both sides in turn, the best of some repeats each.
`--threads 1 --cpu-time` is for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch
from torch.nn.functional import cross_entropy

from steer_heal import data
from steer_heal.config import SMOLLM2, SampleSettings, TrainSettings, build
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import relevances
from steer_heal.generate import Row, complete, decode
from steer_heal.heal import Example, Objective, loss_of
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import LanguageModel, band_layers, load
from steer_heal.vectors.steering import coefficients
from tests import tiny

Work = Callable[[], object]
GEMMA = "gemma-shape"
"""gemma-3-1b-it's width on few layers, its vocabulary cut by as much."""


def model(name: str) -> LanguageModel:
    lm = tiny.gemma_shape(torch.float32, n_layers=6, n_words=65_536) if name == GEMMA else load(name)
    lm.eos_ids = frozenset()
    return lm


def works(lm: LanguageModel, n_new: int, n_vignettes: int) -> dict[str, Work]:
    """What is timed through the door, by name."""
    generator = torch.Generator().manual_seed(0)
    directions_LD = torch.randn(lm.n_layers, lm.width, generator=generator)
    directions_LD /= directions_LD.norm(dim=-1, keepdim=True)
    layers = band_layers(lm.n_layers, (0.4, 0.6))
    top = min(lm.config.vocab_size, 1000)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, top, (n,), generator=generator).tolist())

    def dose(alpha: float) -> torch.Tensor:
        return coefficients(lm.n_layers, layers, alpha)[0]

    prompt, long = ids(100), ids(600)
    prompts, texts = [ids(60) for _ in range(8)], [ids(40) for _ in range(8)]
    sample = build(SampleSettings, max_new_tokens=n_new, greedy=True)
    rows = [Row(prompt), *(Row(prompt, dose(float(n)), shadow=True) for n in range(1, 9))]
    vignettes = lm.material.vignettes(condition="other_violate", limit=n_vignettes)
    four_KL = torch.stack([dose(float(n)) for n in range(4)])

    def write(rows: list[Row]) -> None:
        complete(lm, rows, directions_LD, sample)

    def read(prompt: tuple[int, ...], n: int) -> None:
        rows = [Row(prompt), *(Row(prompt, dose(float(k))) for k in range(1, n))]
        list(islice(decode(lm, rows, directions_LD, sample), 1))

    def asked(frame: str, doses_KL: torch.Tensor) -> None:
        calibrated = ((0.0,) * 7,) * len(getattr(data.frame(frame), "wordings", ()))
        evaluate(lm, vignettes, data.frame(frame), vector=directions_LD, coefficients_RL=doses_KL,
                 calibrated=calibrated)  # fmt: skip

    own = [[-1.0] * len(texts[0])] * len(texts)
    one_KL = four_KL[1:2]
    return {
        "9 rows": lambda: write(rows[:1] + [replace(row, shadow=False) for row in rows[1:]]),
        "17 rows, 8 of them shadows": lambda: write(rows),
        "prompt of 100, 9 rows": lambda: read(prompt, 9),
        "prompt of 600, 1 row": lambda: read(long, 1),
        "choice, one dose": lambda: asked("choice", one_KL),
        "choice, four doses": lambda: asked("choice", four_KL),
        "cloze, one dose": lambda: asked("cloze", one_KL),
        "cloze, four doses": lambda: asked("cloze", four_KL),
        "text_logp": lambda: text_logp(lm, prompts, texts),
        "relevances": lambda: relevances(lm, prompts, texts, own),
    }


def training(lm: LanguageModel) -> tuple[Work, Work]:
    """A step, what does not change being kept: ours, and as one would write it first; an adapter stays on."""
    settings = TrainSettings(batch_size=1)
    stack, layers = AdapterStack(lm), band_layers(lm.n_layers, (0.3, 0.7))
    stack.fresh(1, settings, seed=0, layers=layers)
    ids = torch.randint(10, 1000, (160,), generator=torch.Generator().manual_seed(3))
    row = Example(tuple(ids[:64].tolist()), tuple(ids[64:].tolist()))
    objective = Objective.of(lm, stack, settings)

    def first_written() -> torch.Tensor:
        logits_TV = lm.model(input_ids=ids[None], use_cache=False).logits[0, 63:-1].float()
        return cross_entropy(logits_TV, ids[64:])

    def step(loss: Callable[[], torch.Tensor]) -> None:
        lm.model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss().backward()

    return lambda: step(lambda: loss_of(objective, [row])[0]), lambda: step(first_written)


def plainly(lm: LanguageModel, work: Work) -> Work:
    """The same by transformers' own forward: a hook that does nothing stands in the way of ours."""

    def run() -> None:
        handle = lm.blocks[0].register_forward_pre_hook(lambda *_: None)
        try:
            work()
        finally:
            handle.remove()

    return run


def timed(
    both: tuple[Work, Work], clock: Callable[[], float], repeats: int, patience_s: float
) -> tuple[float, float]:
    """The best seconds of each, in turn, after one of ours that does not count."""
    both[0]()
    best, begun = [float("inf")] * 2, clock()
    for _ in range(repeats):
        for side, work in enumerate(both):
            start = clock()
            work()
            best[side] = min(best[side], clock() - start)
        if clock() - begun > patience_s:
            break
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("demo", SMOLLM2, GEMMA), default=SMOLLM2)
    parser.add_argument("--new", type=int, default=16, help="tokens a row")
    parser.add_argument("--vignettes", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--patience", type=float, default=6.0, help="seconds a case, at least one repeat")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm, clock = model(args.model), time.process_time if args.cpu_time else time.perf_counter
    found: dict[str, dict[str, float]] = {}

    def note(name: str, both: tuple[Work, Work]) -> None:
        if args.only not in name:
            return
        ours, plain = timed(both, clock, args.repeats, args.patience)
        found[name] = {"ours_ms": 1e3 * ours, "plain_ms": 1e3 * plain, "ratio": plain / ours}
        if not args.json:
            print(f"{name:28}{1e3 * ours:10.1f}{1e3 * plain:10.1f}{plain / ours:8.2f}x", flush=True)

    if not args.json:
        print(f"{args.model:28}{'ours, ms':>10}{'plain, ms':>10}{'faster':>9}")
    for name, work in works(lm, args.new, args.vignettes).items():
        note(name, (work, plainly(lm, work)))
    note("training step", training(lm))
    if args.json:
        print(json.dumps({"model": args.model, "cases": found}, indent=2))


if __name__ == "__main__":
    main()
