"""Ten traits of two words each, measured on their own axes: `python -m benchmarks.own_traits`, minutes.

Of each: c*, its movement at alpha 1 and -1, what the same 8 random directions at the same KL move, and what
the steered answers are, by another reading than the axis: nats a token by which base finds them likelier when
it is told the plus persona than when it is told the minus one, less the same of its own answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

from steer_heal import data
from steer_heal.config import (
    DEFAULT_BAND,
    SMOLLM2,
    CalibrateSettings,
    ExtractSettings,
    SampleSettings,
    build,
)
from steer_heal.data import own_traits
from steer_heal.dose import controls
from steer_heal.dose.calibrate import calibrate
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.logp import text_logp
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, band_layers, load, system, user
from steer_heal.records import Completion, Trait, Vignette, trait_shift
from steer_heal.vectors.bridges.extraction import extract

POLES = (
    ("formal", "casual"), ("warm", "cold"), ("blunt", "diplomatic"), ("cautious", "bold"),
    ("poetic", "plain"), ("optimistic", "pessimistic"), ("technical", "simple"), ("playful", "serious"),
    ("religious", "secular"), ("pirate", "ordinary"),
)  # fmt: skip
N_RANDOM, N_VIGNETTES, N_PROMPTS, N_TOKENS = 8, 14, 4, 40
ALPHAS = (0.0, 1.0, -1.0)
HEAD = (
    "trait", "c*", "at alpha 1", "at -1", "random", "as far", "text at 1", "text at -1", "it says at alpha 1",
)  # fmt: skip
SHOWN = 140
"""Characters of an answer."""


class Bench:
    """The model, and what all traits share: vignettes, prompts, and c* of the random directions."""

    def __init__(self, lm: LanguageModel, settings: CalibrateSettings) -> None:
        self.lm, self.settings = lm, settings
        self.layers = band_layers(lm.n_layers, DEFAULT_BAND)
        self.contexts = lm.material.contexts("")
        self.calibration_ids = [lm.encode_chat([user(text)]) for text in self.contexts]
        self.vignettes: list[Vignette] = lm.material.vignettes(condition=data.CONDITION, limit=N_VIGNETTES)
        self.prompts = lm.material.held_out_prompts()[-N_PROMPTS:]
        where = Path("cache"), lm, self.layers, self.calibration_ids, settings
        self.random_c_stars = controls.c_stars(*where, N_RANDOM)

    def row(self, plus: str, minus: str) -> list[str]:
        """The cells of a line of the table, as `HEAD` names them."""
        trait = data.checked_trait(plus, own_traits.of_poles(plus, plus, minus))
        vector = extract(self.lm, trait, self.contexts, build(ExtractSettings, method="mean_diff"))
        found = calibrate(self.lm, vector, self.layers, self.calibration_ids, self.settings)
        dose = CalibratedVector(vector, self.layers, found)
        frame = data.own_axis(trait)
        base = evaluate(self.lm, self.vignettes, frame)[0]
        steered = evaluate(
            self.lm, self.vignettes, frame, vector=vector, coefficients_RL=dose.coefficients_RL(*ALPHAS[1:]),
            calibrated=base.calibration,
        )  # fmt: skip
        held = controls.measure(self.lm, self.layers, self.random_c_stars, self.vignettes, frame, base)
        moved = [trait_shift(one.p, base.p, trait.target) for one in steered]
        shifts = held.shifts(trait.target)
        answers = self.answers(dose)
        text = [fmean(self.towards(trait, some)) for some in answers]
        return [
            f"{plus}/{minus}", f"{found.c_star:.2f}", *(f"{one:+.2f}" for one in moved),
            f"{min(shifts):+.2f} to {max(shifts):+.2f}",
            f"{held.as_far(trait.target, moved[0])} of {N_RANDOM}",
            *(f"{one - text[0]:+.2f}" for one in text[1:]),
            " ".join(answers[1][0].text.replace("|", "/").split())[:SHOWN],
        ]  # fmt: skip

    def answers(self, dose: CalibratedVector) -> list[list[Completion]]:
        """By alpha, greedy answers to the prompts."""
        rows = [
            Row(tuple(self.lm.encode_chat([user(prompt)])), coefficients_L)
            for coefficients_L in dose.coefficients_RL(*ALPHAS)
            for prompt in self.prompts
        ]
        sample = build(SampleSettings, max_new_tokens=N_TOKENS, greedy=True)
        written = complete(self.lm, rows, dose.vector.steers, sample)
        return [written[start : start + N_PROMPTS] for start in range(0, len(written), N_PROMPTS)]

    def towards(self, trait: Trait, written: Sequence[Completion]) -> list[float]:
        """Of each answer the nats a token by which the plus persona makes it likelier than the minus one."""
        ids = [[token.id for token in row.tokens] for row in written]
        plus, minus = (
            text_logp(self.lm, [self.lm.encode_chat([system(told), user(one)]) for one in self.prompts], ids)
            for told in (trait.positive, trait.negative)
        )
        return [fmean(more) - fmean(less) for more, less in zip(plus, minus, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SMOLLM2)
    bench = Bench(load(parser.parse_args().model), build(CalibrateSettings))
    for cells in chain((HEAD, ["---"] * len(HEAD)), (bench.row(*poles) for poles in POLES)):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
