"""What `benchmarks.live` times: our decode loop, and transformers' `generate` with a plain forward hook."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from steer_heal.config import DEFAULT_BAND, SampleSettings, build
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.models import LanguageModel, band_layers, left_pad, load
from steer_heal.vectors.steering import Directions, coefficients, steer
from steer_heal.vectors.vector import SteeringVector
from tests import tiny

GEMMA_SHAPE = "gemma-3-1b shape"
Work = Callable[[], object]
PARTS = ("answers", "steps", "first-token", "batch")
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
    return Case(
        lm, tuple(prompt.tolist()), tiny.vector(lm), band_layers(lm.n_layers, DEFAULT_BAND), 4.0, n_new
    )


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


def write(case: Case, rows: list[Row]) -> None:
    """Write the rows, all steps."""
    for _ in decode(case.lm, rows, case.vector.directions_LD, case.sample):
        pass


def steps(case: Case) -> dict[str, float]:
    """Seconds a step after the first, by batch: one step of each in turn, on the same machine."""
    apart = [(*case.prompt[number:], *case.prompt[:number]) for number in range(9)]
    one = case.vector.directions_LD
    four_MLD = torch.stack([tiny.directions(case.lm, seed) for seed in range(4)])
    mixed = [Row(case.prompt, case.at(1.0)[:, None] * torch.tensor([0.8, -0.4, 0.3, 0.5]))]
    ablating = [Row(case.prompt, case.at(1.0)[:, None] * torch.tensor([0.8, -0.4, 0.3, 0.1]))]
    batches = {
        "1 steered": [Row(case.prompt, case.at(1.0))],
        "1 gated": [Row(case.prompt, case.at(1.0), where="ramp 32")],
        "9 rows": case.rows(9),
        "9 unsteered": [Row(case.prompt, rng_stream=number) for number in range(9)],
        "9 unsteered, a prompt each": [Row(prompt) for prompt in apart],
        "base + steered": case.rows(2),
        "base + steered + shadow": case.rows(2, shadow=True),
    }
    writing = {name: decode(case.lm, rows, one, case.sample) for name, rows in batches.items()} | {
        "1 of 4 vectors": decode(case.lm, mixed, four_MLD, case.sample),
        "1 of 4 vectors, one ablated": decode(
            case.lm, ablating, Directions(four_MLD, (False, False, False, True)), case.sample
        ),
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
    batch: dict[str, Work] = {"generate 9": lambda: generate(case, [case.prompt] * 9, matrix_BL, n_new)}
    in_turn: dict[str, Work] = {"steps": lambda: steps(case)}
    return dict(zip(PARTS, (answers, in_turn, first, batch), strict=True))
