"""Ten traits of two words each, on their own axes: `python -m benchmarks.own_traits`, minutes a trait.

Of each: how many drafted pairs are sound; then of the vector by the personas and of that by drafted replies
c*, movement at alpha 1 and -1, how many of the same 8 random directions at the same KL move it as far, and
what the answers are by another reading than the axis: nats a token by which base finds them likelier when it
is told the plus persona than when it is told the minus one, less the same of its own answers. A trait that
stands in the file of results is not measured again.
"""

import argparse
import json
from collections.abc import Sequence
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
from steer_heal.evaluate import drafts
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
N_RANDOM, N_VIGNETTES, N_PROMPTS, N_TOKENS = 8, 7, 4, 40
ALPHAS = (0.0, 1.0, -1.0)
METHODS = {"mean_diff": "personas", "replies": "replies"}
HEAD = (
    "trait", "sound", "vector by", "c*", "at alpha 1", "at -1", "random", "as far", "text at 1", "text at -1",
    "it says at alpha 1",
)  # fmt: skip
SHOWN = 140
"""Characters of an answer."""


class Bench:
    """The model, and what all traits share: vignettes, prompts, and c* of the random directions."""

    def __init__(self, lm: LanguageModel, settings: CalibrateSettings, *, ours: bool = False) -> None:
        self.lm, self.settings = lm, settings
        self.layers = band_layers(lm.n_layers, DEFAULT_BAND)
        self.contexts = lm.material.contexts("")
        self.calibration_ids = [lm.encode_chat([user(text)]) for text in self.contexts]
        self.vignettes: list[Vignette] = lm.material.vignettes(condition=data.CONDITION, limit=N_VIGNETTES)
        never = lm.material.held_out_prompts()
        self.prompts = never[-N_PROMPTS:]
        own = [text for text in self.contexts if text not in never][: drafts.N_REPLIES]
        self.given = {"scenes": own} if ours else {}
        where = Path("cache"), lm, self.layers, self.calibration_ids, settings
        self.random_c_stars = controls.c_stars(*where, N_RANDOM)

    def rows(self, plus: str, minus: str) -> list[list[str]]:
        """The cells of a trait's lines of the table, as `HEAD` names them, a line a method."""
        entry = own_traits.of_poles(plus, plus, minus, **self.given)
        entry, said = drafts.completed(self.lm, entry, data.checked_trait(plus, entry))
        trait = data.checked_trait(plus, entry)
        frame = data.own_axis(trait)
        base = evaluate(self.lm, self.vignettes, frame)[0]
        held = controls.measure(self.lm, self.layers, self.random_c_stars, self.vignettes, frame, base)
        shifts = held.shifts(trait.target)
        made = []
        for method, by in METHODS.items():
            vector = extract(self.lm, trait, self.contexts, build(ExtractSettings, method=method))
            found = calibrate(self.lm, vector, self.layers, self.calibration_ids, self.settings)
            dose = CalibratedVector(vector, self.layers, found)
            steered = evaluate(
                self.lm, self.vignettes, frame, vector=vector,
                coefficients_RL=dose.coefficients_RL(*ALPHAS[1:]), calibrated=base.calibration,
            )  # fmt: skip
            moved = [trait_shift(one.p, base.p, trait.target) for one in steered]
            answers = self.answers(dose)
            text = [fmean(self.towards(trait, some)) for some in answers]
            made.append([
                f"{plus}/{minus}", said.split(" pairs")[0], by,
                f"{found.c_star:.2f}", *(f"{one:+.2f}" for one in moved),
                f"{min(shifts):+.2f} to {max(shifts):+.2f}",
                f"{held.as_far(trait.target, moved[0])} of {N_RANDOM}",
                *(f"{one - text[0]:+.2f}" for one in text[1:]),
                " ".join(answers[1][0].text.replace("|", "/").split())[:SHOWN],
            ])  # fmt: skip
        return made

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
    parser.add_argument("--traits", nargs="*", default=[plus for plus, _ in POLES], metavar="PLUS")
    parser.add_argument("--ours", action="store_true", help="replies answer our prompts, not drafted scenes")
    parser.add_argument("--out", type=Path, default=Path("own_traits.jsonl"), help="the file of results")
    args = parser.parse_args()
    known = args.out.read_text().splitlines() if args.out.exists() else []
    done = {json.loads(line)[0].partition("/")[0] for line in known}
    if wanted := [poles for poles in POLES if poles[0] in args.traits and poles[0] not in done]:
        bench = Bench(load(args.model), build(CalibrateSettings), ours=args.ours)
        for poles in wanted:
            rows = bench.rows(*poles)
            with args.out.open("a") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)
    found = [json.loads(line) for line in args.out.read_text().splitlines()]
    for cells in (HEAD, ["---"] * len(HEAD), *found):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
