"""Extract, calibrate, over-steer, filter, train, fold, evaluate; and again.

Every round the vector is extracted from the current student and its c* calibrated on it, the student is
steered past c*, what stays coherent is kept, and a fresh adapter learns to say it without steering. A round's
`steered` profile is the student before the round's training at alpha 1; `healed` is the student after it,
without steering.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .. import cards, data, filter, vector
from ..adapters import AdapterStack
from ..bridges.extraction import extract
from ..calibrate import calibrate
from ..config import HealSettings, SettingsError
from ..heal import Example, train_round
from ..instrument import trait_shift
from ..models import LanguageModel, band_layers, user
from ..records import Completion, Event, RoundFailed, Stopped
from ..vector import SteeringVector
from .live import Tick, live
from .measure import Dose, Measures
from .seeds import seed_of

STAGES = ("base", "extract", "calibrate", "generate", "filter", "train", "evaluate")
PROGRESS_S = 0.5
LEAST_SHIFT = 1e-3
"""Steering that moves the trait less than this gives no retention to speak of."""

Emission = tuple[str, int | None, dict[str, Any]]
Kept = list[tuple[Completion, filter.FilterVerdict]]
T = TypeVar("T")
Stage = Generator[Emission, None, T]


def run(
    lm: LanguageModel,
    settings: HealSettings,
    folder: str | Path,
    *,
    start_round: int = 0,
    earlier: Sequence[Event] = (),
    stop: Callable[[], bool] | None = None,
) -> Iterator[Emission]:
    """Heal for `settings.rounds` rounds; yields (kind, round, data), kinds as in docs/architecture.md.

    `folder` gets `vectors/round-N.safetensors` and `adapters/round-N/`. `start_round`: how many rounds are
    finished already, whose adapters lie there; `earlier`: the run's events so far, which spare measuring the
    base again. Ends with `finished`, `failed` (a sentence) or `cancelled`; the model is then as before.
    Same seed, same machine, same numbers, resumed or not. Errors: `SettingsError` before the first event,
    for what can be told at once.
    """
    loop = _Loop(lm, settings, Path(folder), stop or (lambda: False))
    try:
        loop.take_up(start_round, earlier)
        yield from loop.base()
        for round_ in range(start_round + 1, settings.rounds + 1):
            yield from loop.round(round_)
        yield "finished", None, {"reason": f"{settings.rounds} rounds done"}
    except Stopped:
        yield "cancelled", None, {"message": f"stopped with {len(loop.stack.history)} rounds finished"}
    except (SettingsError, RoundFailed) as error:
        yield "failed", None, {"message": str(error)}
    finally:
        loop.stack.unload()


class _Loop:
    """The stages of a run, each a generator of emissions that returns what the next one needs."""

    def __init__(
        self, lm: LanguageModel, settings: HealSettings, folder: Path, stop: Callable[[], bool]
    ) -> None:
        self.lm, self.settings, self.folder, self.stop = lm, settings, folder, stop
        self.layers = band_layers(lm.n_layers, settings.band)
        self.trait = data.trait(settings.trait)
        self.stack = AdapterStack(lm)
        self.measures = Measures(lm, self.stack, settings, stop)
        self.base_p: dict[str, float] = {}
        self.measured: dict[str, dict[str, Any]] = {}
        self.steered_shift: float | None = None

    def take_up(self, start_round: int, earlier: Sequence[Event]) -> None:
        """Resume: the finished rounds' adapters from the folder, what was measured of base from the log."""
        for round_ in range(1, start_round + 1):
            self.stack.load(round_, self.folder / "adapters")
        for event in earlier:
            if event.kind == "profile" and event.data["stage"] == "base":
                text = event.data["text"]
                self.measures.own = filter.Norms(text["own_perplexity"], text["own_tail"])
                self.base_p = event.data["p"]
                self.measured["base"] = event.data
            if (
                event.kind == "profile"
                and event.data["stage"] == "steered"
                and event.round == 1 <= start_round
            ):
                self.steered_shift = self._shift(event.data["p"])

    def base(self) -> Stage[None]:
        """Once a run: the base's profile, its own text, its answers to the fixed prompts."""
        if self.base_p:
            return
        yield from self._begin("base", 0)
        with self.stack.off():
            text = yield from self._live("base", 0, self.measures.text)
            found = yield from self._live("base", 0, self.measures.profile)
            self.base_p = found.p
            self.measured["base"] = self.measures.event("base", 0.0, found, text)
            yield "profile", 0, self.measured["base"]
            yield "answers", 0, self.measures.fixed()

    def round(self, round_: int) -> Stage[None]:
        """One round; its adapter is on the disk before the round counts as done."""
        began = time.monotonic()
        steering = yield from self.extract(round_)
        dose = yield from self.calibrate(round_, steering)
        made = yield from self.generate(round_, dose)
        kept = yield from self.filter(round_, made)
        yield from self.train(round_, kept)
        adapter = self.fold(round_)
        retention = yield from self.evaluate(round_)
        facts = {"retention": retention, "kept": len(kept), "made": len(made), "c_star": dose.c_star}
        cards.write(adapter, cards.card(self.settings, self.trait, round_, self.measured, facts))
        seconds = time.monotonic() - began
        yield (
            "round",
            round_,
            {**facts, "adapter": str(adapter.relative_to(self.folder)), "seconds": seconds},
        )

    def extract(self, round_: int) -> Stage[SteeringVector]:
        """The vector of the current student."""
        yield from self._begin("extract", round_)
        contexts = data.contexts(self.trait.name)

        def work(tick: Tick) -> SteeringVector:
            return extract(self.lm, self.trait, contexts, self.settings.extract, progress=tick)

        found = yield from self._live("extract", round_, work)
        if found.operator is not None:
            raise SettingsError(
                f"A run needs a method that adds a direction, which {self.settings.extract.method} does not: "
                "choose another."
            )
        vector.save(found, self._vector_path(round_))
        cosine = vector.cosine(found, vector.load(self._vector_path(1)), self.layers)
        norm = float(found.norms_L[list(self.layers)].mean())
        yield "vector", round_, {"norm": norm, "cosine_to_first": cosine}
        return found

    def calibrate(self, round_: int, steering: SteeringVector) -> Stage[Dose]:
        """c* on the current student, and the student at alpha 1: the round's `steered` node."""
        yield from self._begin("calibrate", round_)
        prompts = [self.lm.encode_chat([user(text)]) for text in data.contexts(self.trait.name)]

        def work(tick: Tick) -> Any:
            return calibrate(self.lm, steering, self.layers, prompts, self.settings.calibrate, progress=tick)

        found = yield from self._live("calibrate", round_, work)
        keys = ("c_star", "kl_p95", "target_kl", "reached", "message")
        yield "calibrated", round_, {key: getattr(found, key) for key in keys}
        dose = Dose(steering, self.layers, found.c_star)
        text = yield from self._live("calibrate", round_, lambda tick: self.measures.text(tick, dose))
        steered = yield from self._live("calibrate", round_, lambda tick: self.measures.profile(tick, dose))
        self.measured["steered"] = self.measures.event("steered", 1.0, steered, text)
        yield "profile", round_, self.measured["steered"]
        if round_ == 1:
            self.steered_shift = self._shift(steered.p)
        return dose

    def generate(self, round_: int, dose: Dose) -> Stage[list[Completion]]:
        """Over-steered answers: the prompts go round, each at every alpha in turn."""
        yield from self._begin("generate", round_)
        made, seed = self.settings.data, seed_of(self.settings.seed, round_, "generate")
        scale = yield from self._scale(round_, dose)
        alphas = [alpha * scale for alpha in made.alphas]

        def work(tick: Tick) -> list[Completion]:
            return self.measures.write(
                self.measures.asked(made.n_completions), tick, seed=seed, dose=dose, alphas=alphas
            )

        return (yield from self._live("generate", round_, work))

    def _scale(self, round_: int, dose: Dose) -> Stage[float]:
        """The largest multiplier of the alphas at which enough of a probe is kept, else the least.

        A student that carries the trait breaks at lower doses than the base did, so the alphas of round 1
        would starve the rounds after it.
        """
        made, seed = self.settings.data, seed_of(self.settings.seed, round_, "probe")
        survival: dict[float, float] = {}
        for scale in sorted(set(made.scales), reverse=True):

            def work(tick: Tick, scale: float = scale) -> float:
                return self.measures.survival(dose, scale, seed, tick)

            survival[scale] = yield from self._live("generate", round_, work)
            if survival[scale] >= made.survival:
                break
        yield (
            "dose",
            round_,
            {"scale": scale, "survival": {f"{key:g}": value for key, value in survival.items()}},
        )
        return scale

    def filter(self, round_: int, made: list[Completion]) -> Stage[list[Completion]]:
        """What is coherent enough to learn; every completion leaves an event with its scores and reasons."""
        yield from self._begin("filter", round_)
        verdicts = yield from self._live("filter", round_, lambda tick: self.measures.judge(made, tick))
        for index, (row, verdict) in enumerate(zip(made, verdicts, strict=True)):
            yield (
                "completion",
                round_,
                {
                    "index": index,
                    "alpha": row.alpha,
                    "prompt": row.prompt,
                    "text": row.text,
                    "kept": verdict.kept,
                    "scores": verdict.scores,
                    "reasons": list(verdict.reasons),
                },
            )
        kept = [row for row, verdict in zip(made, verdicts, strict=True) if verdict.kept]
        if len(kept) < self.settings.data.min_kept:
            ate = ", ".join(f"{reason} {count}" for reason, count in filter.eaten(verdicts).items())
            raise RoundFailed(
                f"Round {round_} starved: the filter kept {len(kept)} of {len(made)} completions and "
                f"{self.settings.data.min_kept} are needed; dropped for: {ate}. Lower the alphas or the cuts."
            )
        return kept

    def train(self, round_: int, kept: list[Completion]) -> Stage[None]:
        """A fresh adapter learns to say, without steering, what steering made the student say."""
        yield from self._begin("train", round_)
        examples = [
            Example(tuple(self.lm.encode_chat([user(row.prompt)])), tuple(token.id for token in row.tokens))
            for row in kept
        ]
        settings, seed = self.settings.train, seed_of(self.settings.seed, round_, "train")
        near = range(max(0, self.layers[0] - 1), self.layers[-1] + 1)
        layers = near if settings.layers == "band" else None
        self.stack.fresh(round_, settings, seed=seed, layers=layers)
        for step in train_round(self.lm, self.stack, examples, settings, seed=seed, stop=self.stop):
            yield "step", round_, step

    def fold(self, round_: int) -> Path:
        """Freeze the adapter beneath the rounds to come, and write it down."""
        self.stack.fold()
        return self.stack.save(round_, self.folder / "adapters")

    def evaluate(self, round_: int) -> Stage[float | None]:
        """The student without steering: profile, free text, fixed prompts; its retention."""
        yield from self._begin("evaluate", round_)
        text = yield from self._live("evaluate", round_, self.measures.text)
        healed = yield from self._live("evaluate", round_, self.measures.profile)
        self.measured["healed"] = self.measures.event("healed", 0.0, healed, text)
        yield "profile", round_, self.measured["healed"]
        yield "answers", round_, self.measures.fixed()
        steered = self.steered_shift
        return self._shift(healed.p) / steered if steered and abs(steered) >= LEAST_SHIFT else None

    def _shift(self, p: dict[str, float]) -> float:
        return trait_shift(p, self.base_p, self.trait.target)

    def _vector_path(self, round_: int) -> Path:
        return self.folder / "vectors" / f"round-{round_}.safetensors"

    def _begin(self, stage: str, round_: int) -> Iterator[Emission]:
        if self.stop():
            raise Stopped
        yield "stage", round_, {"stage": stage, "n_stages": len(STAGES), "index": STAGES.index(stage)}

    def _live(self, stage: str, round_: int, work: Callable[[Tick], T]) -> Stage[T]:
        """The work's result; its progress is emitted at most every `PROGRESS_S` seconds. Raises `Stopped`."""
        began = told = time.monotonic()
        working = live(work, self.stop)
        while True:
            try:
                done, total = next(working)
            except StopIteration as end:
                if self.stop():
                    raise Stopped from None
                return end.value
            now = time.monotonic()
            if now - told >= PROGRESS_S:
                told = now
                eta = (now - began) * (total - done) / done if done else None
                yield "progress", round_, {"stage": stage, "done": done, "total": total, "eta": eta}
