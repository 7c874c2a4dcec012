"""A round's data: find the dose at which they survive the filter, then collect."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .. import filter
from ..config import DataSettings
from ..records import Completion, Event, FilterVerdict, RoundFailed
from .dosing import chosen, next_probe
from .live import Stage, Tick, emitting
from .measure import Dose, Measures
from .seeds import seed_of

CHUNK = 96
"""Completions between two looks at how many were kept; a multiple of most numbers of alphas."""


@dataclass(frozen=True)
class Text:
    """What is trained on: a prompt, and the tokens of an answer that passed the filter."""

    prompt: str
    ids: tuple[int, ...]


@dataclass
class Maker:
    """Makes a run's data, round by round; `scale` is the last round's multiplier of the alphas."""

    measures: Measures
    settings: DataSettings
    seed: int
    stop: Callable[[], bool]
    scale: float | None = None

    def walk(self, round_: int, dose: Dose) -> Stage[float]:
        """The multiplier of this round's alphas; emits `dose` with the survival of every probe."""
        made, seed = self.settings, seed_of(self.seed, round_, "probe")
        survival: dict[float, float] = {}
        start = max(made.scales) if self.scale is None else self.scale
        while (scale := next_probe(made.scales, survival, start, made.survival)) is not None:

            def work(tick: Tick, scale: float = scale) -> float:
                return self.measures.survival(dose, scale, seed, tick)

            survival[scale] = yield from emitting("generate", round_, work, self.stop)
        self.scale = chosen(survival, made.survival)
        told = {f"{key:g}": value for key, value in survival.items()}
        yield "dose", round_, {"scale": self.scale, "survival": told}
        return self.scale

    def collect(
        self, round_: int, dose: Dose, scale: float
    ) -> Stage[tuple[list[Completion], list[FilterVerdict]]]:
        """Answers and verdicts until enough are kept: the prompts go round, each at every alpha in turn.

        Of a prompt's coherent ones those with most of the trait are kept.
        """
        made, seed = self.settings, seed_of(self.seed, round_, "generate")
        alphas = [alpha * scale for alpha in made.alphas]
        asked = self.measures.asked(made.n_completions, seed, each=len(alphas))
        rows: list[Completion] = []
        verdicts: list[FilterVerdict] = []
        best: list[FilterVerdict] = []
        for start in range(0, len(asked), CHUNK):

            def work(tick: Tick, start: int = start) -> tuple[list[Completion], list[FilterVerdict]]:
                new = self.measures.write(
                    asked[start : start + CHUNK],
                    lambda done, total: tick(start + done, start + total),
                    seed=seed,
                    dose=dose,
                    alphas=alphas,
                    first=start,
                )
                return new, self.measures.judge(new)

            new, judged = yield from emitting("generate", round_, work, self.stop)
            rows, verdicts = rows + new, verdicts + judged
            best = filter.with_most_trait(verdicts, asked[: len(rows)], self.measures.trait_share)
            if sum(verdict.kept for verdict in best) >= made.n_kept:
                break
        return rows, best

    def enough(
        self, round_: int, made: Sequence[Completion], verdicts: Sequence[FilterVerdict]
    ) -> list[Text]:
        """The kept ones. `RoundFailed`, saying what ate the rest, when too few are left or all are alike."""
        kept = [
            Text(row.prompt, tuple(token.id for token in row.tokens))
            for row, verdict in zip(made, verdicts, strict=True)
            if verdict.kept
        ]
        if len(kept) < self.settings.min_kept:
            ate = ", ".join(f"{reason} {count}" for reason, count in filter.eaten(verdicts).items())
            raise RoundFailed(
                f"Round {round_} starved: the filter kept {len(kept)} of {len(made)} completions and "
                f"{self.settings.min_kept} are needed; dropped for: {ate}. Lower the alphas or the cuts."
            )
        if len({text.ids for text in kept}) == 1:
            raise RoundFailed(
                f"Round {round_} has nothing to learn from: all {len(kept)} kept completions are the same. "
                "Lower the alphas, or check the model's sampling settings."
            )
        return kept


class Replay:
    """Earlier rounds' kept texts, some of which are trained on again, so that old ground is not lost."""

    def __init__(self) -> None:
        self._texts: list[Text] = []

    def add(self, texts: Iterable[Text]) -> None:
        self._texts += texts

    def draw(self, count: int, seed: int, own: Sequence[Text] = ()) -> list[Text]:
        """`count` of them, of `own` where there are none yet; or all. The same for the same seed."""
        texts = self._texts or list(own)
        return random.Random(seed).sample(texts, min(count, len(texts)))

    def recall(self, event: Event) -> None:
        """Take up a finished round's completion from the log."""
        if ids := event.data.get("ids"):
            self._texts.append(Text(event.data["prompt"], tuple(ids)))
