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
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GenerationConfig

from steer_heal.calibrate import calibrate
from steer_heal.config import DEFAULT_BAND, CalibrateSettings, SampleSettings, build
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.generate.divergence import kl
from steer_heal.models import LanguageModel, band_layers, left_pad, load
from steer_heal.steering import coefficients, steer
from steer_heal.vector import SteeringVector
from tests import tiny

GEMMA_SHAPE = "gemma-3-1b shape"
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
    """The bundled model, or gemma-3-1b-it's shape with random bfloat16 weights; answers never end early."""
    lm = load("demo") if name == "demo" else _gemma_shape()
    lm.eos_ids = frozenset()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(10, min(lm.config.vocab_size, 1000), (n_prompt,), generator=generator)
    directions = torch.randn(lm.n_layers, lm.width, generator=generator)
    norms = directions.norm(dim=-1)
    vector = SteeringVector(directions / norms[:, None], norms, norms)
    layers = band_layers(lm.n_layers, DEFAULT_BAND)
    # Random weights give nearly even predictions, which no dose moves by a whole nat.
    calibration = build(CalibrateSettings, target_kl=1.0 if lm.is_demo else 0.1)
    return Case(lm, tuple(prompt.tolist()), vector, layers, 4.0, n_new, calibration)


def _gemma_shape() -> LanguageModel:
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0, bos_token_id=2)
    return LanguageModel(GEMMA_SHAPE, model, tiny.tokenizer())


def generate(case: Case, prompts: Sequence[Sequence[int]], coefficients_BL: Tensor, n_new: int) -> Tensor:
    """transformers' `generate` with a plain forward hook: the ids, (B, T)."""
    batch = left_pad(prompts, case.lm.pad_id)
    with torch.no_grad(), steer(case.lm.blocks, case.vector.directions_LD, coefficients_BL):
        generate_ids: Any = case.lm.model.generate
        made = generate_ids(
            batch.ids_BT,
            attention_mask=batch.mask_BT,
            max_new_tokens=n_new,
            min_new_tokens=n_new,
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


def bisection_steps(settings: CalibrateSettings) -> int:
    """How many doses bisection measures to reach the tolerance."""
    low, high = settings.bracket
    return math.ceil(math.log2(math.log(high / low) / math.log1p(settings.tolerance)))


def calibration_prompts(case: Case) -> list[tuple[int, ...]]:
    """As many prompts as calibration uses, of different lengths up to half the prompt."""
    n = case.calibration.n_prompts
    return [case.prompt[: max(8, len(case.prompt) * (n + i) // (4 * n))] for i in range(n)]


def write(case: Case, rows: list[Row]) -> float:
    """Write the rows; returns seconds a step after the first token."""
    steps = decode(case.lm, rows, case.vector.directions_LD, case.sample)
    next(steps)
    begun = case.clock()
    n_steps = sum(1 for _ in steps)
    return (case.clock() - begun) / n_steps


def works(case: Case) -> dict[str, Callable[[], object]]:
    """What is timed, by name. A number that one gives is its seconds a step after the first token."""
    lm, n_new = case.lm, case.n_new
    directions_LD, sample = case.vector.directions_LD, case.sample
    matrix_BL = torch.stack([torch.zeros(lm.n_layers), *map(case.at, ALPHAS)])
    prompts = calibration_prompts(case)
    store = PrefixStore()
    alphas = (0.5 + 0.01 * number for number in count())

    def first_token(store: PrefixStore | None) -> None:
        row = Row(case.prompt, case.at(next(alphas)), shadow=True)
        list(islice(decode(lm, [row], directions_LD, sample, store=store), 1))

    def prefill_one_row() -> None:
        ids = torch.tensor([case.prompt])
        with torch.inference_mode(), steer(lm.blocks, directions_LD, matrix_BL[1:2]):
            lm.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    first_token(store)
    return {
        "generate 1": lambda: generate(case, [case.prompt], matrix_BL[4:5], n_new),
        "generate 9": lambda: generate(case, [case.prompt] * 9, matrix_BL, n_new),
        "9 rows": lambda: write(case, case.rows(9)),
        "17 rows": lambda: write(case, case.rows(9, shadow=True)),
        "9 unsteered": lambda: write(case, [Row(case.prompt, noise=number) for number in range(9)]),
        "base + steered": lambda: write(case, case.rows(2)),
        "base + steered + shadow": lambda: write(case, case.rows(2, shadow=True)),
        "prefill 1": prefill_one_row,
        "slider": lambda: first_token(store),
        "first token, nothing cached": lambda: first_token(None),
        "one dose": lambda: one_dose_at_a_time(case, prompts, case.unit),
        "one dose, prompt by prompt": lambda: [one_dose_at_a_time(case, [p], case.unit) for p in prompts],
        "calibration": lambda: calibrate(lm, case.vector, case.layers, prompts, case.calibration),
    }
