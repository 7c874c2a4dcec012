"""What a run measures of its model, the same way for base, steered and healed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from steer_heal import data
from steer_heal.config import (
    AUTO_FRAME,
    EVERYWHERE,
    MAX_NEW_TOKENS,
    HealSettings,
    SampleSettings,
    SettingsError,
    build,
    read_mix,
)
from steer_heal.dose import controls
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate import text_health, vignette_sets
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.cloze import Calibration
from steer_heal.evaluate.frames import Frames
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import OTHERS, relevances
from steer_heal.generate import Row, complete
from steer_heal.generate.sampling import sampler
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.cost import Cost
from steer_heal.heal.examples import LEARNED
from steer_heal.heal.filter import Own, judge, readings
from steer_heal.heal.progress import Tick
from steer_heal.heal.schedule import seed_of
from steer_heal.models import LanguageModel, user
from steer_heal.records import (
    Agreement,
    Completion,
    Controls,
    FilterVerdict,
    Profile,
    RoundFailed,
    TextHealth,
    Vignette,
)

FEW = 21
"""Vignettes, three of each foundation, which do for what is plain on them already."""


class Measures:
    """The vignettes, frame and prompts of one run, and its measurements with them.

    `few`: at most `FEW` of the vignettes, over all foundations. `beside`: the traits of the run's mix but the
    one that it measures.

    Set by measuring the base, or from a log, are `frame`: how it is asked; `calibrated`: the calibration of a
    cloze; `cannot_answer`: whether what base answers is not above chance, so that answers judge nothing; and
    `own`: the base's own text under base, the unit of perplexity and of relevance. `held_out`: the texts and
    relevances that `text` saw last.
    """

    def __init__(
        self,
        lm: LanguageModel,
        stack: AdapterStack,
        settings: HealSettings,
        cache_dir: Path | None,
        stop: Callable[[], bool],
    ) -> None:
        self._lm, self._stack, self._settings, self._stop = lm, stack, settings, stop
        asked = settings.evaluate
        material = lm.material
        self.vignettes = vignette_sets.vignettes(
            asked.vignettes, material, condition=data.CONDITION, limit=asked.n_vignettes
        )
        self.few = data.balanced(self.vignettes, FEW)
        made = settings.data
        self._sample = build(
            SampleSettings, max_new_tokens=made.max_new_tokens, temperature=made.temperature,
            top_k=made.top_k, top_p=made.top_p,
        )  # fmt: skip
        self.cache_dir, self._frames = cache_dir, Frames(lm, cache_dir)
        trait = data.trait(settings.trait)
        self._asked = data.frame_of(trait, asked.frame)
        self.frame = None if self._asked == AUTO_FRAME else data.frame(self._asked)
        self.calibrated: tuple[tuple[float, ...], ...] = ()
        self.cannot_answer = False
        self.held_prompts, self.fixed_prompts = material.held_out_prompts(), material.fixed_prompts()
        facts, neutral = material.facts(), material.neutral_prompts()
        never = {*self.held_prompts, *neutral, *(fact.question for fact in facts)}
        never |= {vignette.text for vignette in (*self.vignettes, *material.vignettes())}
        self.prompts = [text for text in material.heal_prompts(settings.trait) if text not in never]
        self.plain_prompts = [text for text in material.plain_prompts() if text not in never]
        self._persona, self._target = trait.positive, trait.target
        named = read_mix(settings.mix).traits if settings.mix else ()
        self.beside = tuple(data.trait(name) for name in named if name != settings.trait)
        self._asked_beside: dict[str, tuple[str, Calibration]] = {}
        self.cost = Cost(lm, stack, facts, neutral, partial(self.write, tick=None, seed=0))
        self._base: Profile | None = None
        self.own: Own | None = None
        self.held_out: dict[str, list[Any]] = {}

    def base_profile(self, tick: Tick) -> Profile:
        """The base's, in the frame that is asked for or that suits it, which all later ones are asked in."""
        asked, reading = self._asked, None
        if self.frame is None:
            reading = self._frames.of(progress=tick, stop=self._stop)
            asked = reading.frame
        self.frame = data.frame(asked)
        self.calibrated = self._frames.calibration(asked, self.vignettes, progress=tick, stop=self._stop)
        found = self.profile(tick)
        self.calibrated = found.calibration
        worth = found.agreement if found.agreement.value is not None or reading is None else reading.agreement
        self.cannot_answer, self._base = worth.cannot_answer, found
        return found

    def recall(self, base: Mapping[str, Any]) -> None:
        """What the base's `profile` event holds, as `base_profile` left it. Errors: `SettingsError` where the
        trait is another since."""
        if not set(self._target) <= set(base["p"]):
            raise SettingsError(
                f"The trait {self._settings.trait!r} has other poles than when this run began: start another."
            )
        self.frame = data.frame(base.get("frame") or self._asked)
        self.calibrated = tuple(map(tuple, base.get("calibration", ())))
        self.cannot_answer = base.get("cannot_answer", False)
        self.own = Own(base["text"]["own_perplexity"], base["text"].get("relevance"))
        worth = Agreement(**base.get("agreement") or {})
        self._base = Profile(
            base["p"], base["coherence"], base["n_vignettes"], agreement=worth, calibration=self.calibrated
        )
        for trait in self.beside:
            known = base.get("others", {}).get(trait.name, {})
            if "calibration" in known and set(trait.target) <= set(known["p"]):
                self._asked_beside[trait.name] = known["frame"], tuple(map(tuple, known["calibration"]))

    def profile(self, tick: Tick | None) -> Profile:
        """The seven foundations, or the trait's two poles, on the run's vignettes."""
        return self.profiles(tick)[0]

    def profiles(
        self,
        tick: Tick | None,
        dose: CalibratedVector | None = None,
        alphas: Sequence[float] = (),
        vignettes: Sequence[Vignette] | None = None,
    ) -> list[Profile]:
        """The same under steering, one for each alpha; on these vignettes where some are named."""
        if self.frame is None:
            raise RoundFailed("The base was not measured: start the run again.")
        return evaluate(
            self._lm,
            self.vignettes if vignettes is None else vignettes,
            self.frame,
            vector=dose.vector if dose else None,
            coefficients_RL=dose.coefficients_RL(*alphas) if dose else None,
            calibrated=self.calibrated,
            progress=tick,
            stop=self._stop,
        )

    def others(self, tick: Tick, dose: CalibratedVector | None = None) -> dict[str, dict[str, Any]]:
        """Of those traits of the mix which the run's own profile says nothing of, by name, `p` and
        `n_vignettes` on the `few`: each in its own frame, calibrated on the base, which stand there too; at
        alpha 1 where there is a dose."""
        found = {}
        for trait in self.beside:
            if self._base is not None and not set(trait.target) <= set(self._base.p):
                if trait.name not in self._asked_beside:
                    with self._stack.off():
                        reading = self._frames.of(data.frame_of(trait), progress=tick, stop=self._stop)
                    self._asked_beside[trait.name] = reading.frame, reading.calibration
                frame, calibration = self._asked_beside[trait.name]
                profile = evaluate(
                    self._lm,
                    self.few,
                    data.frame(frame),
                    vector=dose.vector if dose else None,
                    coefficients_RL=dose.coefficients_RL(1.0) if dose else None,
                    calibrated=calibration,
                    progress=tick,
                    stop=self._stop,
                )[0]
                how = {"frame": frame, "calibration": calibration}
                found[trait.name] = {"p": profile.p, "n_vignettes": profile.n_vignettes, **how}
        return found

    def write(
        self,
        prompts: Sequence[str],
        tick: Tick | None,
        *,
        seed: int,
        dose: CalibratedVector | None = None,
        alphas: Sequence[float] = (0.0,),
        greedy: bool = False,
        where: str = EVERYWHERE,
        longest: int = MAX_NEW_TOKENS,
        enough: Callable[[int, str], bool] | None = None,
    ) -> list[Completion]:
        """Answers to the prompts, each at its alpha (they go round) and steered in `where`, with random
        numbers of its own; `longest`: their tokens, where the run's limit is not lower; `enough` as in
        `complete`."""
        rows = []
        for number, prompt in enumerate(prompts):
            alpha = alphas[number % len(alphas)]
            rows.append(
                Row(
                    prompt_ids=tuple(self._lm.encode_chat([user(prompt)])),
                    coefficients_L=dose.coefficients_RL(alpha)[0] if dose else None,
                    alpha=alpha,
                    rng_stream=number,
                    prompt=prompt,
                    where=where,
                )
            )
        limit = min(longest, self._sample.max_new_tokens)
        sample = self._sample.model_copy(update={"greedy": greedy, "seed": seed, "max_new_tokens": limit})
        directions_LD = (
            dose.vector.steers if dose else Tensor([[0.0]]).expand(self._lm.n_layers, self._lm.width)
        )
        return complete(self._lm, rows, directions_LD, sample, stop=self._stop, progress=tick, enough=enough)

    @property
    def temperature(self) -> float:
        """At which the answers are drawn; 1 where they are greedy."""
        return sampler(self._sample, self._lm.sampling).temperature or 1.0

    def scored(
        self, written: Sequence[Completion], tick: Tick | None = None
    ) -> list[tuple[list[float], float | None]]:
        """Of every answer, under the base without steering: its tokens' log-probs, and its relevance."""
        prompts = [self._lm.encode_chat([user(row.prompt)]) for row in written]
        ids = [[token.id for token in row.tokens] for row in written]
        n, total = len(written), (1 + len(OTHERS)) * len(written)

        def read(done: int, _total: int = 0) -> None:
            if tick:
                tick(done, total)

        with self._stack.off():
            logps = text_logp(self._lm, prompts, ids, progress=read, stop=self._stop)
            about = relevances(
                self._lm, prompts, ids, logps, progress=lambda done: read(n + done), stop=self._stop
            )
        return list(zip(logps, about, strict=True))

    def asked(self, count: int, seed: int, each: int = 1) -> list[str]:
        """The prompts of `count` answers, `each` times one after the other, in the seed's order."""
        order = random.Random(seed).sample(self.prompts, len(self.prompts))
        return [order[number // each % len(order)] for number in range(count)]

    def plain(self, count: int, seed: int, tick: Tick | None = None) -> list[Completion]:
        """How base begins to answer `count` of the plain prompts, or all."""
        some = random.Random(seed).sample(self.plain_prompts, min(count, len(self.plain_prompts)))
        with self._stack.off():
            return self.write(some, tick, seed=seed, longest=LEARNED)

    def judge(self, written: Sequence[Completion], tick: Tick | None = None) -> list[FilterVerdict]:
        """The filter's verdict on every answer; `RoundFailed` before the base was measured."""
        own = self._unit()
        return [
            judge(readings(row.text, logp, about, own), self._settings.filter)
            for row, (logp, about) in zip(written, self.scored(written, tick), strict=True)
        ]

    def _unit(self) -> Own:
        if self.own is None:
            raise RoundFailed("The base was not measured: start the run again.")
        return self.own

    def text(
        self, tick: Tick | None, dose: CalibratedVector | None = None, alpha: float = 0.0
    ) -> dict[str, float]:
        """Health of free answers to the held-out prompts: the medians, the share that loops, and how varied
        they are from prompt to prompt."""
        n = self._settings.evaluate.n_answers
        prompts = [self.held_prompts[number % len(self.held_prompts)] for number in range(n)]
        seed = seed_of(self._settings.seed, 0, "answers")
        written = self.write(prompts, tick, seed=seed, dose=dose, alphas=(alpha,))
        scored = self.scored(written, tick)
        self.own = own = self.own or _own(scored)
        found = text_health.summary(_healths(written, scored, own))
        texts = [row.text for row in written]
        self.held_out = {"texts": texts, "relevance": [about for _, about in scored]}
        return found | {
            "own_perplexity": own.perplexity,
            "n_answers": n,
            "diversity": text_health.distinct_bigrams(texts),
        }

    def controls(
        self, layers: Sequence[int], c_stars: Sequence[float], tick: Tick, base_of_few: Profile | None = None
    ) -> Controls:
        """What random directions do to the base, each at its own c*, and the persona, on the run's vignettes;
        on the `few` without the persona, where the base's profile on these is given."""
        if self.frame is None or self._base is None:
            raise RoundFailed("The base was not measured: start the run again.")
        on, base, persona = self.vignettes, self._base, self._persona
        if base_of_few is not None:
            on, base, persona = self.few, base_of_few, ""
        return controls.measure(
            self._lm, layers, c_stars, on, self.frame, base, persona=persona, progress=tick, stop=self._stop
        )

    def fixed(self, dose: CalibratedVector | None = None) -> dict[str, list[str]]:
        """The greedy answers to the fixed prompts, at alpha 1 where there is a dose, what the limit of tokens
        has cut saying so, and each one's word. `RoundFailed` before the base was measured."""
        written = self.write(self.fixed_prompts, None, seed=0, dose=dose, alphas=(1.0,), greedy=True)
        rows = _healths(written, self.scored(written), self._unit())
        texts = [row.text if row.ended else row.text + text_health.CUT for row in written]
        return {"texts": texts, "words": [row.verdict for row in rows]}

    def event(self, stage: str, alpha: float, found: Profile, text: dict[str, float]) -> dict[str, Any]:
        """The data of a `profile` event."""
        about: dict[str, Any] = {"cannot_answer": self.cannot_answer} if stage == "base" else {}
        about |= {
            "text_verdict": text_health.set_verdict(text),
            "answers_verdict": found.answers_against(self._base)
            if self._base and not self.cannot_answer
            else None,
        }
        return {"stage": stage, "alpha": alpha, **asdict(found), **about, "text": text}


def _healths(
    written: Sequence[Completion], scored: Sequence[tuple[Sequence[float], float | None]], own: Own
) -> list[TextHealth]:
    """Of every answer, in units of base's own text; `scored` as from `Measures.scored`."""
    return [
        text_health.health(row.text, logp, own.perplexity, relevance=about, own_relevance=own.relevance)
        for row, (logp, about) in zip(written, scored, strict=True)
    ]


def _own(scored: Sequence[tuple[Sequence[float], float | None]]) -> Own:
    perplexities = [value for logp, _ in scored if (value := text_health.perplexity(logp)) is not None]
    if not perplexities:
        raise RoundFailed("The base model writes empty answers: choose another model.")
    return Own(median(perplexities), text_health.middle(about for _, about in scored))
