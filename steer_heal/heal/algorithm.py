"""Vector, dose, answers, filter, train, fold, measure; and again.

Every round the vector, or what a mix comes to, is extracted from the current student and its c* calibrated on
it, the student answers under steering, and a fresh adapter learns without steering what steering makes of the
student, above all to give the answers that read as well as base's own. A run's `steered` profile is base at
alpha 1; a round's `healed` one is the student after it, without steering.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from steer_heal import data
from steer_heal.config import HealSettings, Mix, SettingsError, read_mix
from steer_heal.dose import controls
from steer_heal.dose.calibrate import calibrate
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.dose.mixed import mixed
from steer_heal.heal import cards, headline
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.examples import LEARNED, Example
from steer_heal.heal.filter import Text, kept_texts, texts
from steer_heal.heal.measure import Measures
from steer_heal.heal.memory import check_memory, longest_prompt, step_of
from steer_heal.heal.progress import Emission, Stage, Tick, emitting
from steer_heal.heal.report import in_words, movements, report
from steer_heal.heal.schedule import seed_of, standing, steered_base, trained_layers, within_reach
from steer_heal.heal.train import train_round
from steer_heal.models import LanguageModel, band_layers, user
from steer_heal.records import (
    Calibration,
    Completion,
    Controls,
    Event,
    FilterVerdict,
    Profile,
    RoundFailed,
    Stopped,
    Trait,
    trait_shift,
)
from steer_heal.vectors import vector
from steer_heal.vectors.bridges.extraction import extract
from steer_heal.vectors.steering import shares, steer
from steer_heal.vectors.vector import SteeringVector

STAGES = ("base", "extract", "calibrate", "generate", "filter", "train", "evaluate")
LEAST_SHIFT = 1e-3
"""Steering that moves the trait less than this gives no retention to speak of."""

CURVE = (0.5, 0.75, 0.875, 1.0, 1.25)
"""Alphas at which steering alone is measured, densest where first rounds come to lie: agreement bends there,
and a straight line over a quarter of c* is too high by more than a round differs (docs/reports/healing.md). A
second round moves further than alpha 1 does. What it costs besides, which takes longest, at 1 alone."""
NOT_MEASURED = {"facts_kept": None, "neutral_kl": None}

T = TypeVar("T")


def run(
    lm: LanguageModel,
    settings: HealSettings,
    folder: str | Path,
    *,
    start_round: int = 0,
    earlier: Sequence[Event] = (),
    cache_dir: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generator[Emission, None, None]:
    """Heal for `settings.rounds` rounds; yields (kind, round, data), kinds as in docs/reference/events.md.

    `folder` gets `vectors/round-N.safetensors` and `adapters/round-N/`. `start_round`: how many rounds are
    finished already, whose adapters lie there; `earlier`: the run's events so far, which spare measuring the
    base again. `cache_dir`: where it is kept in which frame a model is asked. Ends with `finished`, `failed`
    (a sentence) or `cancelled`; the model is then as before. Same seed, same machine, same numbers, resumed
    or not. Errors: `SettingsError` before the first event, for what can be told at once: that its memory does
    not suffice, among others.
    """
    cache = None if cache_dir is None else Path(cache_dir)
    loop = _Loop(lm, settings, Path(folder), cache, stop or (lambda: False))
    try:
        loop.take_up(start_round, earlier)
        yield from loop.base()
        for round_ in range(start_round + 1, settings.rounds + 1):
            yield from loop.round(round_)
        yield "finished", None, {"reason": f"{settings.rounds} rounds done; {loop.said}"}
    except Stopped:
        yield "cancelled", None, {"message": f"stopped with {len(loop.stack.history)} rounds finished"}
    except (SettingsError, RoundFailed) as error:
        yield "failed", None, {"message": str(error)}
    finally:
        loop.stack.unload()


class _Loop:
    """The stages of a run, each a generator of emissions that returns what the next one needs."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: HealSettings,
        folder: Path,
        cache: Path | None,
        stop: Callable[[], bool],
    ) -> None:
        self.lm, self.settings, self.folder, self.stop = lm, settings, folder, stop
        self.layers = band_layers(lm.n_layers, settings.band)
        self.trained_layers = trained_layers(lm.n_layers, settings.band)
        self.trait = data.trait(settings.trait)
        self.mix: Mix | None = read_mix(settings.mix, data.traits()) if settings.mix else None
        self.parts: dict[str, Calibration] = {}
        self.stack = AdapterStack(lm)
        self.measures = Measures(lm, self.stack, settings, cache, stop)
        self.measured: dict[str, dict[str, Any]] = {}
        self.first_steered: dict[str, Any] = {}
        self.first_c_star = 0.0
        self.path: list[dict[str, Any]] = []
        self.printed: dict[str, dict[str, list[str]]] = {}
        self.controls: Controls | None = None
        self.steered_base: list[Event] = []
        self.said = ""
        self._check_room()

    @property
    def base_p(self) -> dict[str, float]:
        return self.measured["base"]["p"]

    def _check_room(self) -> None:
        """`SettingsError` when the longest row fits neither the model nor the memory."""
        asked = [*self.measures.prompts, *self.measures.plain_prompts]
        longest = longest_prompt(self.lm, asked)
        made, room = self.settings.data, getattr(self.lm.config, "max_position_embeddings", None)
        if room and longest + made.max_new_tokens > room:
            raise SettingsError(
                f"{self.lm.name} reads {room} tokens at most, and the longest prompt has {longest}: set "
                f"data.max_new_tokens to {max(0, room - longest)} or fewer, not {made.max_new_tokens}."
            )
        check_memory(self.lm, *step_of(self.lm, self.settings, longest))

    def take_up(self, start_round: int, earlier: Sequence[Event]) -> None:
        """Resume: the finished rounds' adapters from the folder, what was measured and made from the log."""
        for round_ in range(1, start_round + 1):
            self.stack.load(round_, self.folder / "adapters")
        for event in standing(earlier, start_round):
            self._recall(event)
        self.steered_base = steered_base(earlier)

    def _recall(self, event: Event) -> None:
        """What an earlier attempt measured or made is so again."""
        if event.kind == "profile":
            self.measured[event.data["stage"]] = event.data
        if event.kind == "profile" and event.data["stage"] == "base":
            self.measures.recall(event.data)
        elif event.kind == "profile" and event.data["stage"] == "steered" and event.round == 1:
            self.first_steered = event.data
        elif event.kind == "vector" and event.round == 1:
            parts = event.data.get("parts", {})
            self.parts = {name: Calibration(**found) for name, found in parts.items()}
        elif event.kind == "calibrated" and event.round == 1:
            self.first_c_star = event.data["c_star"]
        elif event.kind == "controls":
            self.controls = Controls(**event.data)
        elif event.kind == "curve":
            self.path = list(event.data["points"])
            texts, words = event.data["answers"], event.data.get("words", [])
            self.printed["steered"] = {"texts": texts, "words": words}
        elif event.kind == "answers" and event.round == 0:
            self.printed["base"] = event.data
        elif event.kind == "round":
            self.path = list(event.data["path"])

    def base(self) -> Stage[None]:
        """Once a run: the base's profile, its own text, its answers."""
        if "base" in self.printed:
            return
        yield from self._begin("base", 0)
        with self.stack.off():
            text = yield from self._live("base", 0, self.measures.text)
            found = yield from self._live("base", 0, self.measures.base_profile)
            others = yield from self._others("base", 0)
            self.measured["base"] = self.measures.event("base", 0.0, found, text) | others
            yield "profile", 0, self.measured["base"]
            yield self._held_out("base", 0, 0.0, found)
            self.printed["base"] = self.measures.fixed()
            yield "answers", 0, {"prompts": self.measures.fixed_prompts, **self.printed["base"]}

    def round(self, round_: int) -> Stage[None]:
        """One round; its adapter is on the disk before the round counts as done."""
        began = time.monotonic()
        steering = yield from self.extract(round_)
        dose = yield from self.calibrate(round_, steering)
        written = yield from self.generate(round_, dose)
        kept, dropped, plain = yield from self.filter(round_, written)
        yield from self.train(round_, dose, kept, dropped, plain)
        adapter = self.fold(round_)
        facts = yield from self.evaluate(round_)
        made = self.settings.data.n_answers
        facts |= {"kept": len(kept), "made": made, "plain": len(plain), "c_star": dose.calibration.c_star}
        cards.write(adapter, cards.card(self.settings, self.trait, round_, self.measured, facts))
        facts |= {"adapter": str(adapter.relative_to(self.folder)), "seconds": time.monotonic() - began}
        yield "round", round_, facts

    def extract(self, round_: int) -> Stage[SteeringVector]:
        """The vector of the current student."""
        yield from self._begin("extract", round_)
        if self.mix is None:
            found = yield from self._live("extract", round_, partial(self._vector, self.trait))
        else:
            found = yield from self._live("extract", round_, partial(self._mixed, self.mix))
        vector.save(found, self._vector_path(round_))
        cosine = vector.cosine(found, vector.load(self._vector_path(1)), self.layers)
        norm = float(found.norms_L[list(self.layers)].mean())
        facts: dict[str, Any] = {"norm": norm, "cosine_to_first": cosine}
        if self.mix:
            facts["parts"] = {name: asdict(one) for name, one in self.parts.items()}
            facts["message"] = found.meta["message"]
        yield "vector", round_, facts
        return found

    def _vector(self, trait: Trait, tick: Tick) -> SteeringVector:
        contexts = self.lm.material.contexts(trait.name)
        found = extract(self.lm, trait, contexts, self.settings.extract, progress=tick)
        if found.operator is not None:
            raise SettingsError(
                f"A run needs a method that adds a direction, which {self.settings.extract.method} does not: "
                "choose another."
            )
        return found

    def _mixed(self, mix: Mix, tick: Tick) -> SteeringVector:
        """What the mix adds, as one vector. How long the vector of each trait is in it was found on base, by
        its c* there, and stays so: a student that has one of them already gets the same mix."""
        vectors = {name: self._vector(data.trait(name), tick) for name in mix.traits}
        for name, one in vectors.items():
            if name not in self.parts:
                how = self._prompts(name), self.settings.calibrate
                self.parts[name] = calibrate(self.lm, one, self.layers, *how, progress=tick)
        of = {name: CalibratedVector(one, self.layers, self.parts[name]) for name, one in vectors.items()}
        made = mixed(mix, of)
        found = made.one
        assert found is not None
        more = {"model": self.lm.name, "mix": self.settings.mix, "message": made.message}
        return replace(found, meta=found.meta | more)

    def _prompts(self, trait: str) -> list[list[int]]:
        """What c* is found on."""
        return [self.lm.encode_chat([user(text)]) for text in self.lm.material.contexts(trait)]

    def calibrate(self, round_: int, steering: SteeringVector) -> Stage[CalibratedVector]:
        """c* on the current student, and the student at alpha 1: the round's `steered` node."""
        yield from self._begin("calibrate", round_)
        prompts = self._prompts(self.trait.name)
        settings = within_reach(self.settings.calibrate, self.first_c_star)

        def work(tick: Tick) -> Any:
            return calibrate(self.lm, steering, self.layers, prompts, settings, progress=tick)

        found = yield from self._live("calibrate", round_, work)
        self.first_c_star = self.first_c_star or found.c_star
        keys = ("c_star", "kl_p95", "target_kl", "reached", "message")
        yield "calibrated", round_, {key: getattr(found, key) for key in keys}
        dose = CalibratedVector(steering, self.layers, found)
        if round_ == 1 and self.steered_base:  # measured before the run was stopped
            for event in self.steered_base:
                self._recall(event)
                yield event.kind, 1, event.data
        elif round_ == 1:
            at_one = yield from self.control(prompts, dose)
            others = [alpha for alpha in CURVE if alpha != 1.0]
            found = yield from self._live(
                "calibrate", 1, lambda tick: self.measures.profiles(tick, dose, others)
            )
            yield from self.curve(dose, {1.0: at_one, **dict(zip(others, found, strict=True))})
        return dose

    def curve(self, dose: CalibratedVector, profiles: Mapping[float, Profile]) -> Stage[None]:
        """What steering alone does to base at some doses, which the rounds are held against; alpha 1 is the
        run's `steered` node."""
        self.path = [self._point(self.measured["base"], 0, {"facts_kept": 1.0, "neutral_kl": 0.0})]
        for alpha, profile in sorted(profiles.items()):
            text = yield from self._live("calibrate", 1, partial(self.measures.text, dose=dose, alpha=alpha))
            cost = self.measures.cost.measure(dose, alpha) if alpha == 1.0 else NOT_MEASURED
            found = self.measures.event("steered", alpha, profile, text)
            self.path.append(self._point(found, 1, cost))
            yield self._held_out("steered", 1, alpha, profile)
            if alpha == 1.0:
                others = yield from self._others("calibrate", 1, dose)
                self.measured["steered"] = self.first_steered = found | others
        yield "profile", 1, self.first_steered
        self.printed["steered"] = steered = self.measures.fixed(dose)
        yield "curve", 1, {"points": self.path, "answers": steered["texts"], "words": steered["words"]}

    def _point(self, found: dict[str, Any], round_: int, cost: Mapping[str, Any]) -> dict[str, Any]:
        """Movement and health of one measurement, as the chart of a run shows them."""
        text, agreement = found["text"], found["agreement"]["value"]
        point = {"stage": found["stage"], "round": round_, "alpha": found["alpha"], "agreement": agreement}
        point |= {"movement": self._shift(found["p"]), **cost}
        return point | {
            key: text.get(key) for key in ("relevance", "diversity", "perplexity_ratio", "looping")
        }

    def control(self, prompts: list[list[int]], dose: CalibratedVector) -> Stage[Profile]:
        """The base at alpha 1, beside random directions at the same KL where the run asks for some.
        `RoundFailed` when one of them moves the trait as far: there is nothing to heal. A few vignettes come
        first, and where most of the random directions reach the vector on these, it ends there."""
        n, settings = self.settings.evaluate.controls, self.settings.calibrate
        c_stars: tuple[float, ...] = ()

        def pause() -> None:
            if self.stop():
                raise Stopped

        if n:
            how = self.measures.cache_dir, self.lm, self.layers, prompts, settings, n
            c_stars = yield from self._live(
                "calibrate", 1, lambda tick: controls.c_stars(*how, progress=tick, pause=pause)
            )
        if n and len(self.measures.few) < len(self.measures.vignettes):
            held, steered = yield from self._live(
                "calibrate", 1, lambda tick: self._on_few(dose, c_stars, tick)
            )
            self._refuse(held, steered, allowed=n // 2)
        (steered,) = yield from self._live(
            "calibrate", 1, lambda tick: self.measures.profiles(tick, dose, (1.0,))
        )
        if n:
            self.controls = held = yield from self._live(
                "calibrate", 1, lambda tick: self.measures.controls(self.layers, c_stars, tick)
            )
            yield "controls", 1, asdict(held)
            self._refuse(held, steered, allowed=0)
        return steered

    def _on_few(
        self, dose: CalibratedVector, c_stars: Sequence[float], tick: Tick
    ) -> tuple[Controls, Profile]:
        measures = self.measures
        base, steered = measures.profiles(tick, dose, (0.0, 1.0), measures.few)
        return measures.controls(self.layers, c_stars, tick, base), steered

    def _refuse(self, held: Controls, steered: Profile, *, allowed: int) -> None:
        """`RoundFailed` where more than `allowed` random directions move the trait as far as the vector, and
        the model's answers say something."""
        movement = trait_shift(steered.p, held.base, self.trait.target)
        as_far = held.as_far(self.trait.target, movement)
        if as_far > allowed and not self.measures.cannot_answer:
            raise RoundFailed(
                f"This vector is no better than random: at alpha 1 it moves {self.trait.name} by "
                f"{movement:+.3f}, and {as_far} of {len(held.random)} random directions of the same KL move "
                f"it as far, over {steered.n_vignettes} vignettes. Choose another trait, method or layers; "
                "with evaluate.controls 0 it goes on all the same."
            )

    def generate(self, round_: int, dose: CalibratedVector) -> Stage[list[Completion]]:
        """The steered student's answers: the prompts go round, each at every alpha in turn; then base's own
        to plain prompts."""
        yield from self._begin("generate", round_)
        made, seed = self.settings.data, seed_of(self.settings.seed, round_, "generate")
        asked = self.measures.asked(made.n_answers, seed, each=len(made.alphas))
        alphas = [alpha * self.share(round_) for alpha in made.alphas]

        def work(tick: Tick) -> list[Completion]:
            how = {"seed": seed, "alphas": alphas, "where": self.settings.gate}
            return self.measures.write(asked, tick, dose=dose, **how)

        steered = yield from self._live("generate", round_, work)
        plain = yield from self._live(
            "generate", round_, lambda tick: self.measures.plain(made.n_plain, seed, tick)
        )
        return [*steered, *plain]

    def filter(
        self, round_: int, written: list[Completion]
    ) -> Stage[tuple[list[Text], list[Text], list[Text]]]:
        """The steered answers that read well enough to be given, the others, and all of base's own to plain
        prompts; every answer leaves an event, with its readings and reasons where it has."""
        yield from self._begin("filter", round_)
        n, least = self.settings.data.n_answers, self.settings.data.min_kept
        judged = yield from self._live("filter", round_, lambda tick: self.measures.judge(written[:n], tick))
        verdicts = [*judged, *(FilterVerdict(kept=True, scores={}, reasons=()) for _ in written[n:])]
        for index, (row, verdict) in enumerate(zip(written, verdicts, strict=True)):
            shown = {"index": index, "alpha": row.alpha, "prompt": row.prompt, "text": row.text}
            shown |= {"kept": verdict.kept, "scores": verdict.scores, "reasons": list(verdict.reasons)}
            yield "completion", round_, shown
        kept = kept_texts(round_, written[:n], judged, least)
        return kept, texts(written[:n], judged, kept=False), texts(written[n:], verdicts[n:])

    def train(
        self,
        round_: int,
        dose: CalibratedVector,
        kept: list[Text],
        dropped: list[Text],
        plain: list[Text],
    ) -> Stage[None]:
        """A fresh adapter learns to begin without steering as steering made the student begin, and to plain
        prompts as base does. What the filter dropped is of use only to imitate its writer: nothing in it
        is made likelier."""
        yield from self._begin("train", round_)
        settings, seed = self.settings.train, seed_of(self.settings.seed, round_, "train")
        alone = settings.divergence == "nll"
        imitated = dropped if settings.reference == "writer" and not alone else []
        # Nobody chose base's own answers to plain prompts: that they are likely says no more than D does.
        parts = ((kept, True, True), (imitated, True, False), (plain, False, alone))
        examples = [
            Example(tuple(self.lm.encode_chat([user(text.prompt)])), text.ids[:LEARNED], steered, likely)
            for some, steered, likely in parts
            for text in some
        ]
        self.stack.fresh(round_, settings, seed=seed, layers=self.trained_layers)
        taught = dose.coefficients_RL(settings.teacher_alpha * self.share(round_))

        def writer(batch: Sequence[Example]) -> AbstractContextManager[Any]:
            """Steered as the answers were, each token by its place."""
            lengths = [(len(row.prompt_ids), len(row.completion_ids)) for row in batch]
            gated_BT = shares(self.settings.gate, lengths)
            return steer(self.lm.blocks, dose.vector.steers, taught, gated_BT)

        steps = train_round(
            self.lm, self.stack, examples, settings, seed=seed, steer=writer,
            temperature=self.measures.temperature, stop=self.stop,
        )  # fmt: skip
        for step in steps:
            yield "step", round_, step

    def share(self, round_: int) -> float:
        """Of the first round's doses: a student that has the trait already needs less of the vector."""
        return self.settings.data.later ** (round_ - 1)

    def fold(self, round_: int) -> Path:
        """Freeze the adapter beneath the rounds to come, and write it down."""
        self.stack.fold()
        return self.stack.save(round_, self.folder / "adapters")

    def evaluate(self, round_: int) -> Stage[dict[str, Any]]:
        """The student without steering: profile, free text, fixed prompts, what it keeps; the headline."""
        yield from self._begin("evaluate", round_)
        text = yield from self._live("evaluate", round_, self.measures.text)
        found = yield from self._live("evaluate", round_, self.measures.profile)
        others = yield from self._others("evaluate", round_)
        healed = self.measured["healed"] = self.measures.event("healed", 0.0, found, text) | others
        yield "profile", round_, healed
        yield self._held_out("healed", round_, 0.0, found)
        printed, by_dose = self.measures.fixed(), self.printed["steered"]
        prompts = {"prompts": self.measures.fixed_prompts, **printed}
        yield "answers", round_, prompts | {"steered": by_dose["texts"], "steered_words": by_dose["words"]}
        base, steered = self.measured["base"], self._shift(self.first_steered["p"])
        moved = abs(steered) >= LEAST_SHIFT and not self.measures.cannot_answer
        retention = self._shift(found.p) / steered if moved else None
        cost = yield from self._live("evaluate", round_, lambda _tick: self.measures.cost.measure())
        said = headline.judge(base, healed, self.trait.target, retention, controls=self.controls, cost=cost)
        said = said.counting(printed["texts"], self.printed["base"]["texts"])
        beside = movements(self.measures.beside, base, self.first_steered, healed)
        if beside:
            said = replace(said, why=f"{said.why}; {in_words(beside)}")
        self.said = f"round {round_} {said.sentence()}"
        facts: dict[str, Any] = {"retention": retention, "headline": asdict(said), "beside": beside}
        self.path.append(self._point(healed, round_, cost))
        facts |= cost | {"path": list(self.path)}
        if self.controls is not None:
            facts["as_far"] = self.controls.as_far(self.trait.target, self._shift(found.p))
        return facts | report(base, self.first_steered, healed, self.trait.target)

    def _others(self, stage: str, round_: int, dose: CalibratedVector | None = None) -> Stage[dict[str, Any]]:
        """What a `profile` event of a mix holds besides; nothing of a run without one."""
        if not self.measures.beside:
            return {}
        found = yield from self._live(stage, round_, lambda tick: self.measures.others(tick, dose))
        return {"others": found}

    def _held_out(self, stage: str, round_: int, alpha: float, found: Profile) -> Emission:
        """What the medians and shares of one measurement are of, for intervals: the answers to the held-out
        prompts with their relevances, and the likeliest foundation or pole of each vignette."""
        likeliest = [row.likeliest for row in found.per_vignette]
        of = {"stage": stage, "alpha": alpha, "likeliest": likeliest}
        return "held_out", round_, of | self.measures.held_out

    def _shift(self, p: dict[str, float]) -> float:
        return trait_shift(p, self.base_p, self.trait.target)

    def _vector_path(self, round_: int) -> Path:
        return self.folder / "vectors" / f"round-{round_}.safetensors"

    def _begin(self, stage: str, round_: int) -> Iterator[Emission]:
        if self.stop():
            raise Stopped
        yield "stage", round_, {"stage": stage, "n_stages": len(STAGES), "index": STAGES.index(stage)}

    def _live(self, stage: str, round_: int, work: Callable[[Tick], T]) -> Stage[T]:
        return emitting(stage, round_, work, self.stop)
