"""What live steering costs: `python -m benchmarks.live [--models smollm2] [--repeats N] [--json FILE]`.

Each measure beside the one it is compared with, in one run, interleaved: medians over repeats, and of a ratio
the median of the ratios within one repeat. "One at a time" is transformers' own `generate` with a plain
forward hook, one row, times the number of rows. The part `forward` asks the door to the network the same
twice, the second time with a hook on the model that does nothing, so that transformers' forward answers; of a
training step the other side is the loss as one would write it first. `--threads 1 --cpu-time` is for a busy
machine.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from steer_heal import data
from steer_heal.config import DEFAULT_BAND, DEMO, SMOLLM2, SampleSettings, TrainSettings, build
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import relevances
from steer_heal.forward import holds_on
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.heal import Example, Objective, loss_of
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import LanguageModel, band_layers, left_pad, load
from steer_heal.vectors.steering import Directions, coefficients, steer
from tests import tiny

SHAPE = "shape"
"""gemma-3-1b-it's shape with random bfloat16 weights."""
PARTS = ("answers", "steps", "first-token", "batch", "forward")
UNIT = 4.0
Work = Callable[[], object]
RATIOS = (
    ("base + 8 alphas: 9 one at a time over it", 9, "generate 1", "9 rows"),
    ("the same with 8 shadows, 17 rows", 9, "generate 1", "17 rows"),
    ("9 rows: 9 times one row through our own loop over it", 9, "1 row", "9 rows"),
    ("17 rows: 9 times one row through our own loop over it", 9, "1 row", "17 rows"),
    ("base + 8 alphas: a plain batch of generate over it", 1, "generate 9", "9 rows"),
    ("a step of 9 rows, 8 steered, to 9 unsteered of one prompt", 1, "step: 9 rows", "step: 9 unsteered"),
    ("the same, a prompt each", 1, "step: 9 rows", "step: 9 unsteered, a prompt each"),
    ("a step with a shadow to one without", 1, "step: with a shadow", "step: base + steered"),
    ("a row of 4 vectors to a row of one", 1, "step: 4 vectors", "step: 1 steered"),
    ("a row of 4 vectors, one ablated, to a row of one", 1, "step: 4, one ablated", "step: 1 steered"),
    ("a gated row to one that is not", 1, "step: 1 gated", "step: 1 steered"),
    ("slider to first token: to one prefill by transformers", 1, "slider", "prefill 1, transformers"),
    ("slider to first token: to one prefill by ours", 1, "slider", "prefill 1, ours"),
)
"""What is told, and which measure, so many times, is divided by which; what is done plainly, by ours."""


@dataclass(frozen=True, eq=False)
class Case:
    """One model, one prompt of random tokens, and a random direction a layer; answers never end early."""

    lm: LanguageModel
    prompt: tuple[int, ...]
    directions_LD: Tensor
    n_new: int
    clock: Callable[[], float]

    @property
    def sample(self) -> SampleSettings:
        return build(SampleSettings, max_new_tokens=self.n_new, greedy=True)

    def at(self, alpha: float) -> Tensor:
        layers = band_layers(self.lm.n_layers, DEFAULT_BAND)
        return coefficients(self.lm.n_layers, layers, alpha * UNIT)[0]

    def rows(self, n: int, *, shadow: bool = False) -> list[Row]:
        """Base and n - 1 steered rows, each with a dose of its own."""
        doses = [4.0 * number / max(n - 1, 1) for number in range(1, n)]
        return [Row(self.prompt), *(Row(self.prompt, self.at(dose), shadow=shadow) for dose in doses)]


def case(name: str, n_prompt: int, n_new: int, clock: Callable[[], float]) -> Case:
    lm = tiny.gemma_shape() if name == SHAPE else load(name)
    lm.eos_ids = frozenset()
    if lm.model.generation_config is not None:
        lm.model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(10, min(lm.config.vocab_size, 1000), (n_prompt,), generator=generator)
    return Case(lm, tuple(prompt.tolist()), tiny.directions(lm), n_new, clock)


def generate(case: Case, prompts: Sequence[Sequence[int]], coefficients_BL: Tensor) -> None:
    """transformers' `generate` with a plain forward hook."""
    batch = left_pad(prompts, case.lm.pad_id)
    with torch.no_grad(), steer(case.lm.blocks, case.directions_LD, coefficients_BL):
        generate_ids: Any = case.lm.model.generate
        generate_ids(
            batch.ids_BT, attention_mask=batch.mask_BT, max_new_tokens=case.n_new, do_sample=False,
            temperature=None, top_k=None, top_p=None, pad_token_id=case.lm.pad_id,
        )  # fmt: skip


def steps(case: Case) -> dict[str, float]:
    """Seconds a step after the first, by batch: one step of each in turn, on the same machine."""
    apart = [(*case.prompt[number:], *case.prompt[:number]) for number in range(9)]
    four_MLD = torch.stack([tiny.directions(case.lm, seed) for seed in range(4)])
    mixed = [Row(case.prompt, case.at(1.0)[:, None] * torch.tensor([0.8, -0.4, 0.3, 0.5]))]
    ablating = Directions(four_MLD, (False, False, False, True))
    batches: dict[str, tuple[list[Row], Any]] = {
        "1 steered": ([Row(case.prompt, case.at(1.0))], case.directions_LD),
        "1 gated": ([Row(case.prompt, case.at(1.0), where="ramp 32")], case.directions_LD),
        "9 rows": (case.rows(9), case.directions_LD),
        "9 unsteered": ([Row(case.prompt, rng_stream=number) for number in range(9)], case.directions_LD),
        "9 unsteered, a prompt each": ([Row(prompt) for prompt in apart], case.directions_LD),
        "base + steered": (case.rows(2), case.directions_LD),
        "with a shadow": (case.rows(2, shadow=True), case.directions_LD),
        "4 vectors": (mixed, four_MLD),
        "4, one ablated": (mixed, ablating),
    }
    writing = {name: decode(case.lm, rows, how, case.sample) for name, (rows, how) in batches.items()}
    spent = dict.fromkeys(writing, 0.0)
    for step in range(case.n_new):
        for name, batch in writing.items():
            begun = case.clock()
            next(batch)
            if step:
                spent[name] += case.clock() - begun
    return {f"step: {name}": seconds / (case.n_new - 1) for name, seconds in spent.items()}


def works(case: Case) -> dict[str, dict[str, Work]]:
    """What is timed, by part and name; what gives numbers gives the seconds a step of several batches."""
    lm, directions_LD, store = case.lm, case.directions_LD, PrefixStore()
    doses_BL = torch.stack([case.at(0.5 * number) for number in range(9)])
    alphas = (0.5 + 0.01 * number for number in count())

    def write(n: int, *, shadow: bool = False) -> Work:
        return lambda: list(decode(lm, case.rows(n, shadow=shadow), directions_LD, case.sample))

    def first_token(row: Row, store: PrefixStore | None = None) -> None:
        list(islice(decode(lm, [row], directions_LD, case.sample, store=store), 1))

    def moved(store: PrefixStore | None) -> None:
        first_token(Row(case.prompt, case.at(next(alphas)), shadow=True), store)

    def transformers_prefill() -> None:
        with torch.inference_mode(), steer(lm.blocks, directions_LD, doses_BL[1:2]):
            lm.model(input_ids=torch.tensor([case.prompt]), use_cache=True, logits_to_keep=1)

    moved(store)
    return {
        "answers": {
            "generate 1": lambda: generate(case, [case.prompt], doses_BL[4:5]),
            "1 row": write(1),
            "9 rows": write(9),
            "17 rows": write(9, shadow=True),
        },
        "steps": {"steps": lambda: steps(case)},
        "first-token": {
            "prefill 1, transformers": transformers_prefill,
            "prefill 1, ours": lambda: first_token(Row(case.prompt)),
            "slider": lambda: moved(store),
            "first token, nothing cached": lambda: moved(None),
        },
        "batch": {"generate 9": lambda: generate(case, [case.prompt] * 9, doses_BL)},
        "forward": doors(case),
    }


def doors(case: Case) -> dict[str, Work]:
    """What is asked of the door to the network, ours and plainly, and a training step."""
    lm, top = case.lm, min(case.lm.config.vocab_size, 1000)
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, top, (n,), generator=generator).tolist())

    long, prompts, texts = ids(600), [ids(60) for _ in range(8)], [ids(40) for _ in range(8)]
    vignettes = lm.material.vignettes(condition=data.CONDITION, limit=7)
    few = build(SampleSettings, max_new_tokens=16, greedy=True)

    def asked(frame: str, *alphas: float) -> Work:
        calibrated = ((0.0,) * 7,) * len(getattr(data.frame(frame), "wordings", ()))
        doses_KL = torch.stack([case.at(alpha) for alpha in alphas])
        return lambda: evaluate(
            lm, vignettes, data.frame(frame), vector=case.directions_LD, coefficients_RL=doses_KL,
            calibrated=calibrated,
        )  # fmt: skip

    works: dict[str, Work] = {
        "9 rows, written": lambda: complete(lm, case.rows(9), case.directions_LD, few),
        "17 rows, written": lambda: complete(lm, case.rows(9, shadow=True), case.directions_LD, few),
        "prompt of 600": lambda: list(islice(decode(lm, [Row(long)], case.directions_LD, few), 1)),
        "choice, one dose": asked("choice", 1.0),
        "choice, four doses": asked("choice", 0.0, 1.0, 2.0, 3.0),
        "cloze, one dose": asked("cloze", 1.0),
        "cloze, four doses": asked("cloze", 0.0, 1.0, 2.0, 3.0),
        "log-probs": lambda: text_logp(lm, prompts, texts),
        "relevance": lambda: relevances(lm, prompts, texts, [[-1.0] * 40] * 8),
    }
    plainly = {f"{name}, plainly": _plainly(lm, work) for name, work in works.items()}
    return works | plainly | {"training": lambda: _training(case)}


def _plainly(lm: LanguageModel, work: Work) -> Work:
    """The same by transformers' own forward."""

    def run() -> None:
        handle = lm.blocks[0].register_forward_pre_hook(lambda *_: None)
        try:
            work()
        finally:
            handle.remove()

    return run


def _training(case: Case) -> dict[str, float]:
    """The least seconds of a step, what does not change being kept, and of one as first written."""
    lm, settings = case.lm, TrainSettings(batch_size=1)
    stack = AdapterStack(lm)
    stack.fresh(1, settings, seed=0, layers=band_layers(lm.n_layers, (0.3, 0.7)))
    objective = Objective.of(lm, stack, settings)
    ids = torch.randint(10, 1000, (160,), generator=torch.Generator().manual_seed(3))
    row = Example(tuple(ids[:64].tolist()), tuple(ids[64:].tolist()))

    def first_written() -> Tensor:
        logits_TV = lm.model(input_ids=ids[None], use_cache=False).logits[0, 63:-1].float()
        return cross_entropy(logits_TV, ids[64:])

    losses = {"training step": lambda: loss_of(objective, [row])[0], "training step, plainly": first_written}
    least = dict.fromkeys(losses, float("inf"))
    for number in range(4):
        for name, loss in losses.items():
            begun = case.clock()
            lm.model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss().backward()
            if number:
                least[name] = min(least[name], case.clock() - begun)
    stack.unload()
    return least


def timed(jobs: dict[str, Work], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every repeat, all jobs in turn, after one round that does not count."""
    found: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            begun = clock()
            given = job()
            seconds = given if isinstance(given, dict) else {name: clock() - begun}
            print(f"repeat {number}: {name}: {clock() - begun:.2f} s", flush=True)
            for key, value in seconds.items() if number else ():
                found.setdefault(key, []).append(value)
    return found


def report(about: str, found: dict[str, list[float]]) -> dict[str, float]:
    """Prints the medians, and gives the ratios."""
    print(f"\n{about}\n\n| what | ms |\n| --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | {1e3 * median(seconds):.2f} |")
    plainly = [(name, 1, name, name.removesuffix(", plainly")) for name in found if "plainly" in name]
    ratios = {
        told: median(times * a / b for a, b in zip(found[over], found[under], strict=True))
        for told, times, over, under in (*RATIOS, *plainly)
        if {over, under} <= found.keys()
    }
    print("\n| ratio | |\n| --- | --- |", *(f"| {told} | {x:.2f} |" for told, x in ratios.items()), sep="\n")
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=(DEMO, SHAPE, SMOLLM2), default=[DEMO, SHAPE, SMOLLM2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=200, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock, document = time.process_time if args.cpu_time else time.perf_counter, {}
    for name in args.models:
        subject = case(name, args.prompt, args.tokens, clock)
        parts = works(subject)
        jobs = {key: job for part in args.only for key, job in parts[part].items()}
        seconds = timed(jobs, args.repeats, clock)
        used = "our own blocks" if holds_on(subject.lm, subject.directions_LD) else "transformers' forward"
        about = f"{name}, {subject.lm.info.dtype}, {args.prompt} + {args.tokens} tokens, {used}"
        document[name] = {"about": about, "seconds": seconds, "ratios": report(about, seconds)}
    if args.json:
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
