"""What `benchmarks.live` times: our decode loop, and transformers' `generate` with a plain forward hook."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.live_report import GROWTH
from steer_heal.config import DEFAULT_BAND, CalibrateSettings, SampleSettings, build
from steer_heal.dose.calibrate import calibrate, measurement
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.generate.divergence import kl
from steer_heal.models import LanguageModel, band_layers, left_pad, load
from steer_heal.vectors.steering import coefficients, steer
from steer_heal.vectors.vector import SteeringVector
from tests import tiny

GEMMA_SHAPE = "gemma-3-1b shape"
Work = Callable[[], object]
PARTS = ("answers", "steps", "first-token", "calibration", "batch", "growth")
ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)


@dataclass(frozen=True, eq=False)
class Case:
    """One model, one prompt of `n_prompt` random tokens, and a random direction a layer."""

    lm: LanguageModel
    prompt: tuple[int, ...]
    vector: SteeringVector
    layers: tuple[int, ...]
    unit: float
    n_new: int
    calibration: CalibrateSettings
    clock: Callable[[], float] = time.perf_counter

    @property
    def sample(self) -> SampleSettings:
        return build(SampleSettings, max_new_tokens=self.n_new, greedy=True)

    def at(self, alpha: float) -> Tensor:
        return coefficients(self.lm.n_layers, self.layers, alpha * self.unit)[0]

    def rows(self, n: int, *, shadow: bool = False) -> list[Row]:
        """Base and n - 1 steered rows, each with a dose of its own."""
        doses = [4.0 * number / max(n - 1, 1) for number in range(1, n)]
        return [Row(self.prompt), *(Row(self.prompt, self.at(dose), shadow=shadow) for dose in doses)]


def case(name: str, n_prompt: int, n_new: int) -> Case:
    """A known model, or gemma-3-1b-it's shape with random bfloat16 weights; answers never end early."""
    lm = tiny.gemma_shape() if name == GEMMA_SHAPE else load(name)
    lm.eos_ids = frozenset()
    if lm.model.generation_config is not None:
        lm.model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(10, min(lm.config.vocab_size, 1000), (n_prompt,), generator=generator)
    directions = torch.randn(lm.n_layers, lm.width, generator=generator)
    norms = directions.norm(dim=-1)
    vector = SteeringVector(directions / norms[:, None], norms, norms)
    layers = band_layers(lm.n_layers, DEFAULT_BAND)
    # Random weights give nearly even predictions, which no dose moves by a whole nat.
    calibration = build(CalibrateSettings, target_kl=0.1 if name == GEMMA_SHAPE else 1.0)
    return Case(lm, tuple(prompt.tolist()), vector, layers, 4.0, n_new, calibration)


def generate(case: Case, prompts: Sequence[Sequence[int]], coefficients_BL: Tensor, n_new: int) -> Tensor:
    """transformers' `generate` with a plain forward hook: the ids, (B, T)."""
    batch = left_pad(prompts, case.lm.pad_id)
    with torch.no_grad(), steer(case.lm.blocks, case.vector.directions_LD, coefficients_BL):
        generate_ids: Any = case.lm.model.generate
        made = generate_ids(
            batch.ids_BT,
            attention_mask=batch.mask_BT,
            max_new_tokens=n_new,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            pad_token_id=case.lm.pad_id,
        )
    return made


def one_dose_at_a_time(case: Case, prompts: Sequence[Sequence[int]], c: float) -> None:
    """One step of a bisection: `generate`, then both models read the texts for their logits."""
    settings = case.calibration
    row_1L = coefficients(case.lm.n_layers, case.layers, c)
    ids_BT = generate(case, prompts, row_1L, settings.n_tokens)
    both = []
    for matrix in (row_1L, torch.zeros_like(row_1L)):
        with torch.inference_mode(), steer(case.lm.blocks, case.vector.directions_LD, matrix):
            output = case.lm.model(input_ids=ids_BT, use_cache=False, logits_to_keep=settings.n_tokens + 1)
        both.append(output.logits[:, :-1].flatten(0, 1))
    torch.quantile(kl(*both).double(), settings.quantile)


def searches(case: Case) -> dict[str, int]:
    """How many doses each search with one dose at a time measures here; isokl on real weights only."""
    found = {f"bisection to {case.calibration.tolerance:.1%} of c": bisection_doses(case.calibration)}
    if case.lm.is_demo:
        prompts = calibration_prompts(case)
        measure = measurement(case.lm, case.vector, case.layers, prompts, case.calibration)
        n = false_position_doses(lambda c: measure([c])[0], case.calibration)
        found["isokl_steering_calibration's search to 5% of KL"] = n
    return found


def bisection_doses(settings: CalibrateSettings) -> int:
    """How many doses bisection measures to reach the tolerance."""
    low, high = settings.bracket
    return math.ceil(math.log2(math.log(high / low) / math.log1p(settings.tolerance)))


def false_position_doses(kl: Callable[[float], float], settings: CalibrateSettings) -> int:
    """How many doses the search of isokl_steering_calibration measures, as its source has it.

    From the bracket's geometric middle it doubles or halves c until the target lies between two doses, then
    takes the false position in log KL over log c (the Illinois variant) until KL is within 5% of the target,
    12 times at most. It rolls out and scores one prompt at a time: its cost a dose is "prompt by prompt".
    """
    target, n = settings.target_kl, 1
    here = math.sqrt(math.prod(settings.bracket))
    value = kl(here)
    factor = 2.0 if value < target else 0.5
    before = (here, value)
    while (value < target) == (factor > 1) and settings.bracket[0] < here < settings.bracket[1]:
        before, here = (here, value), here * factor
        value, n = kl(here), n + 1
    (low, kl_low), (high, kl_high) = sorted([before, (here, value)])
    stale = {"low": 0, "high": 0}
    for _ in range(12):
        below = math.log(max(kl_low, 1e-12)) - (math.log(2) if stale["low"] >= 2 else 0.0)
        above = math.log(kl_high) - (math.log(2) if stale["high"] >= 2 else 0.0)
        share = (math.log(target) - below) / (above - below)
        share = share if 0.0 < share < 1.0 else 0.5
        here = low * (high / low) ** share
        value, n = kl(here), n + 1
        if abs(value - target) < 0.05 * target:
            break
        end = "low" if value < target else "high"
        low, kl_low = (here, value) if end == "low" else (low, kl_low)
        high, kl_high = (here, value) if end == "high" else (high, kl_high)
        stale = {side: 0 if side == end else count + 1 for side, count in stale.items()}
    return n


def calibration_prompts(case: Case) -> list[tuple[int, ...]]:
    """As many prompts as calibration uses, of different lengths up to half the prompt."""
    n = case.calibration.n_prompts
    return [case.prompt[: max(8, len(case.prompt) * (n + i) // (4 * n))] for i in range(n)]


def write(case: Case, rows: list[Row]) -> None:
    """Write the rows, all steps."""
    for _ in decode(case.lm, rows, case.vector.directions_LD, case.sample):
        pass


def steps(case: Case) -> dict[str, float]:
    """Seconds a step after the first, by batch: one step of each in turn, on the same machine."""
    apart = [(*case.prompt[number:], *case.prompt[:number]) for number in range(9)]
    batches = {
        "9 rows": case.rows(9),
        "9 unsteered": [Row(case.prompt, rng_stream=number) for number in range(9)],
        "9 unsteered, a prompt each": [Row(prompt) for prompt in apart],
        "base + steered": case.rows(2),
        "base + steered + shadow": case.rows(2, shadow=True),
    }
    writing = {
        name: decode(case.lm, rows, case.vector.directions_LD, case.sample) for name, rows in batches.items()
    }
    spent = dict.fromkeys(writing, 0.0)
    for step in range(case.n_new):
        for name, steps in writing.items():
            begun = case.clock()
            next(steps)
            if step:
                spent[name] += case.clock() - begun
    return {name: seconds / (case.n_new - 1) for name, seconds in spent.items()}


def works(case: Case) -> dict[str, dict[str, Work]]:
    """What is timed, by part and name; what gives numbers gives the seconds a step of several batches."""
    lm, n_new = case.lm, case.n_new
    directions_LD = case.vector.directions_LD
    matrix_BL = torch.stack([torch.zeros(lm.n_layers), *map(case.at, ALPHAS)])
    prompts = calibration_prompts(case)
    store = PrefixStore()
    alphas = (0.5 + 0.01 * number for number in count())

    def first_token(store: PrefixStore | None) -> None:
        row = Row(case.prompt, case.at(next(alphas)), shadow=True)
        list(islice(decode(lm, [row], directions_LD, case.sample, store=store), 1))

    def prefill_one_row() -> None:
        ids = torch.tensor([case.prompt])
        with torch.inference_mode(), steer(lm.blocks, directions_LD, matrix_BL[1:2]):
            lm.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def rows_in_all(n: int) -> Callable[[], object]:
        return lambda: write(case, case.rows(n))

    first_token(store)
    answers: dict[str, Work] = {
        "generate 1": lambda: generate(case, [case.prompt], matrix_BL[4:5], n_new),
        "1 row": rows_in_all(1),
        "9 rows": rows_in_all(9),
        "17 rows": lambda: write(case, case.rows(9, shadow=True)),
        "base + steered": rows_in_all(2),
        "base + steered + shadow": lambda: write(case, case.rows(2, shadow=True)),
    }
    first: dict[str, Work] = {
        "prefill 1, transformers": prefill_one_row,
        "prefill 1, ours": lambda: list(
            islice(decode(lm, [Row(case.prompt)], directions_LD, case.sample), 1)
        ),
        "slider": lambda: first_token(store),
        "first token, nothing cached": lambda: first_token(None),
    }
    calibration: dict[str, Work] = {
        "one dose, prompts batched": lambda: one_dose_at_a_time(case, prompts, case.unit),
        "one dose, prompt by prompt": lambda: [one_dose_at_a_time(case, [p], case.unit) for p in prompts],
        "calibration": lambda: calibrate(lm, case.vector, case.layers, prompts, case.calibration),
    }
    batch: dict[str, Work] = {"generate 9": lambda: generate(case, [case.prompt] * 9, matrix_BL, n_new)}
    grown: dict[str, Work] = {f"{n} rows in all": rows_in_all(n) for n in GROWTH}
    in_turn: dict[str, Work] = {"steps": lambda: steps(case)}
    return dict(zip(PARTS, (answers, in_turn, first, calibration, batch, grown), strict=True))
