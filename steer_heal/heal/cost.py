"""What healing costs besides: facts that are not told any more, and how far the model is from base on prompts
that have nothing to do with the trait."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

import torch

from steer_heal.config import TrainSettings
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.chunked_loss import Targets, row_losses
from steer_heal.heal.examples import Example
from steer_heal.heal.lm_head import OutputLayer, hidden_states, labels
from steer_heal.heal.reference import Reference
from steer_heal.models import LanguageModel, user
from steer_heal.records import Completion, Fact
from steer_heal.vectors.steering import steer

AT_ONCE = 16
"""Neutral answers that are read together."""
DRAWS = 32
"""Times that a question is asked. The likeliest answer alone often hangs on a word at which two tokens are as
likely as each other, and is lost to a change too small to see; of 32 draws to each of 20 questions the share
that is kept is known to 2% (docs/reports/healing.md, "Facts")."""
TRIES = 8
"""Times that base is asked first: of a fact that it tells in less than half of them it knows nothing."""

Write = Callable[..., list[Completion]]
"""Answers to prompts, drawn or `greedy`, by whichever student is active, under a dose where one is named; by
the same random numbers every time."""


class Cost:
    """The facts and the neutral prompts of one run, and what base makes of them, found when first asked."""

    def __init__(
        self,
        lm: LanguageModel,
        stack: AdapterStack,
        facts: Sequence[Fact],
        neutral: Sequence[str],
        write: Write,
    ) -> None:
        self._lm, self._stack, self._write = lm, stack, write
        self._facts, self._neutral_prompts = tuple(facts), tuple(neutral)
        self._reference = Reference(lm, stack, TrainSettings(divergence="kl_rev", reference="base"))
        self._base: tuple[dict[Fact, int], tuple[Example, ...]] | None = None

    def _of_base(self) -> tuple[dict[Fact, int], tuple[Example, ...]]:
        """How often base answers rightly, of the facts that it knows, and its likeliest answers to the
        neutral prompts."""
        if self._base is None:
            with self._stack.off():
                tried = self._right(self._facts, TRIES)
                told = self._right([fact for fact, n in tried.items() if 2 * n >= TRIES], DRAWS)
                written = self._write(self._neutral_prompts, greedy=True)
            rows = (
                Example(
                    tuple(self._lm.encode_chat([user(row.prompt)])), tuple(token.id for token in row.tokens)
                )
                for row in written
                if row.tokens
            )
            self._base = told, tuple(rows)
        return self._base

    def _right(self, facts: Sequence[Fact], draws: int, **dose: Any) -> dict[Fact, int]:
        """Of so many answers to each question those that tell the fact."""
        asked = [fact for fact in facts for _ in range(draws)]

        def told(number: int, text: str) -> bool:
            # With a letter more: what stands last may yet become another word.
            return asked[number].told_by(text + "x")

        answers = self._write([fact.question for fact in asked], enough=told, **dose)
        right = Counter(fact for fact, row in zip(asked, answers, strict=True) if fact.told_by(row.text))
        return {fact: right[fact] for fact in facts}

    def measure(self, dose: CalibratedVector | None = None, alpha: float = 0.0) -> dict[str, float | None]:
        """`facts_kept`: right answers over base's, to the facts that base knows, 1 at most (None where it
        knows none); `neutral_kl`: KL(student || base) on base's answers to the neutral prompts, nats a
        token in the mean. Of the student under `dose` at `alpha` where there is one."""
        known, neutral = self._of_base()
        right = self._right(tuple(known), DRAWS, dose=dose, alphas=(alpha,))
        of_base = sum(known.values())
        kept = min(1.0, sum(right.values()) / of_base) if of_base else None
        batches = [neutral[start : start + AT_ONCE] for start in range(0, len(neutral), AT_ONCE)]
        for batch in batches:
            self._reference.read(batch)
        steered = nullcontext()
        if dose is not None:
            steered = steer(self._lm.blocks, dose.vector.steers, dose.coefficients_RL(alpha))
        with steered:
            return {"facts_kept": kept, "neutral_kl": self._kl(batches)}

    @torch.no_grad()
    def _kl(self, batches: Sequence[Sequence[Example]]) -> float | None:
        output, found = OutputLayer(self._lm), []
        for batch in batches:
            base_ND, student_ND = self._reference.hidden(batch), hidden_states(self._lm, batch)
            targets = Targets(output, labels(batch, self._lm.device), "kl_rev", base_ND)
            _, kl_N = row_losses(targets, student_ND)
            found += kl_N.tolist()
        return fmean(found) if found else None
