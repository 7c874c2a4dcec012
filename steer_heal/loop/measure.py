"""What a run measures of its model, the same way for base, steered and healed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from .. import controls, data, filter, instrument
from ..adapters import AdapterStack
from ..bridges import sets
from ..config import AUTO_FRAME, HealSettings, SampleSettings, build
from ..generate import Row, complete
from ..heal import Example, OutputLayer, hidden_states, row_losses
from ..models import LanguageModel, system, user
from ..records import Agreement, Completion, Controls, FilterVerdict, Profile, RoundFailed, Vignette
from ..steering import coefficients
from ..vector import SteeringVector
from .live import Tick
from .seeds import seed_of

KL_ROWS = 16


@dataclass(frozen=True)
class Dose:
    """A vector, the layers it is added to, and the c* that alpha is in units of."""

    vector: SteeringVector
    layers: tuple[int, ...]
    c_star: float

    def coefficients_L(self, alpha: float) -> Tensor:
        return coefficients(self.vector.n_layers, self.layers, alpha * self.c_star)[0]


class Measures:
    """The vignettes, frame and prompts of one run, and its measurements with them.

    `frame`: how it is asked; `calibrated`: the calibration of a cloze; `cannot_answer`: whether what base
    answers is not above chance, so that answers judge nothing. `own`, `own_relevance`: the base's own
    text under base, the unit of perplexities and of relevance; `told`: the same
    with the persona as its system prompt, text and measure. All are set by measuring the base, or from a log.
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
        self.vignettes = sets.vignettes(
            asked.vignettes, material, condition=asked.condition, limit=asked.n_vignettes
        )
        self.cache_dir, self._frames = cache_dir, instrument.Frames(lm, cache_dir)
        self.frame = None if asked.frame == AUTO_FRAME else data.frame(asked.frame)
        self.calibrated: tuple[tuple[float, ...], ...] = ()
        self.cannot_answer = False
        self.held_prompts, self.fixed_prompts = material.held_out_prompts(), material.fixed_prompts()
        never = {*self.held_prompts, *material.neutral_prompts()}
        pool = [*material.heal_prompts(settings.trait), *material.contexts(settings.trait)]
        self.prompts = [text for text in dict.fromkeys(pool) if text not in never][: settings.data.n_prompts]
        self._persona = data.trait(settings.trait).positive
        self._base: Profile | None = None
        self.own: filter.Norms | None = None
        self.own_relevance: float | None = None
        self.told: filter.Norms | None = None

    @property
    def trait_share(self) -> float:
        """Share of the coherent completions that is trained on."""
        return self._settings.filter.trait_share

    def base_profile(self, tick: Tick) -> Profile:
        """The base's, in the frame that is asked for or that suits it, which all later ones are asked in."""
        asked = self._settings.evaluate.frame
        reading = None
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
        """What the base's `profile` event holds, as `base_profile` left it."""
        self.frame = data.frame(base.get("frame") or self._settings.evaluate.frame)
        self.calibrated = tuple(map(tuple, base.get("calibration", ())))
        self.cannot_answer = base.get("cannot_answer", False)
        self.own = filter.Norms(base["text"]["own_perplexity"], base["text"]["own_tail"])
        self.own_relevance = base["text"].get("relevance")
        worth = Agreement(**base.get("agreement") or {})
        self._base = Profile(
            base["p"], base["coherence"], base["n_vignettes"], agreement=worth, calibration=self.calibrated
        )

    def profile(self, tick: Tick | None, dose: Dose | None = None, alpha: float = 1.0) -> Profile:
        """The seven foundations on the run's vignettes, steered where a dose is given."""
        return self._asked(self.vignettes, tick, dose, alpha)

    def _asked(
        self, vignettes: Sequence[Vignette], tick: Tick | None, dose: Dose | None = None, alpha: float = 1.0
    ) -> Profile:
        if self.frame is None:
            raise RoundFailed("The base was not measured: start the run again.")
        return instrument.evaluate(
            self._lm,
            vignettes,
            self.frame,
            vector=dose.vector if dose else None,
            coefficients_KL=dose.coefficients_L(alpha)[None] if dose else None,
            calibrated=self.calibrated,
            batch_size=self._settings.evaluate.batch_size,
            progress=tick,
            stop=self._stop,
        )[0]

    def write(
        self,
        prompts: Sequence[str],
        tick: Tick | None,
        *,
        seed: int,
        dose: Dose | None = None,
        alphas: Sequence[float] = (0.0,),
        greedy: bool = False,
        first: int = 0,
        persona: str | None = None,
    ) -> list[Completion]:
        """Answers to the prompts, each at its alpha (they go round), with random numbers of its own.

        `first`: the number of the first one, where they are part of more. `persona`: a system prompt.
        """
        rows, told = [], [] if persona is None else [system(persona)]
        for number, prompt in enumerate(prompts, first):
            alpha = alphas[number % len(alphas)]
            rows.append(
                Row(
                    prompt_ids=tuple(self._lm.encode_chat([*told, user(prompt)])),
                    coefficients_L=dose.coefficients_L(alpha) if dose else None,
                    alpha=alpha,
                    noise=number,
                    prompt=prompt,
                )
            )
        made = self._settings.data
        sample = build(
            SampleSettings, max_new_tokens=made.max_new_tokens, greedy=greedy, seed=seed,
            temperature=made.temperature, top_k=made.top_k, top_p=made.top_p,
        )  # fmt: skip
        directions_LD = (
            dose.vector.steers if dose else Tensor([[0.0]]).expand(self._lm.n_layers, self._lm.width)
        )
        return complete(self._lm, rows, directions_LD, sample, stop=self._stop, progress=tick)

    def logp(
        self, written: Sequence[Completion], tick: Tick | None = None, persona: str | None = None
    ) -> list[list[float]]:
        """Log-probs of every answer's tokens under the base without steering, told the persona or nothing."""
        told = [] if persona is None else [system(persona)]
        prompts = [self._lm.encode_chat([*told, user(row.prompt)]) for row in written]
        ids = [[token.id for token in row.tokens] for row in written]
        with self._stack.off():
            return instrument.text_logp(self._lm, prompts, ids, progress=tick, stop=self._stop)

    def relevances(
        self, written: Sequence[Completion], logps: Sequence[Sequence[float]]
    ) -> list[float | None]:
        """How much each answer is about its prompt, under the base; `logps` after its own prompt."""
        prompts = [self._lm.encode_chat([user(row.prompt)]) for row in written]
        ids = [[token.id for token in row.tokens] for row in written]
        with self._stack.off():
            return instrument.relevances(self._lm, prompts, ids, logps, stop=self._stop)

    def asked(self, count: int, seed: int, each: int = 1) -> list[str]:
        """The prompts of `count` completions, `each` times one after the other, in the seed's order."""
        order = random.Random(seed).sample(self.prompts, len(self.prompts))
        return [order[number // each % len(order)] for number in range(count)]

    def judge(self, written: Sequence[Completion], tick: Tick | None = None) -> list[FilterVerdict]:
        """The filter's verdict on every answer; `RoundFailed` before the base was measured."""
        if self.own is None or self.told is None:
            raise RoundFailed("The base was not measured: start the run again.")
        own, told, logps = self.own, self.told, self.logp(written, tick)
        heard = self.logp(written, persona=self._persona)
        return [
            filter.judge(filter.scores(row.text, logp, own, (again, told)), self._settings.filter)
            for row, logp, again in zip(written, logps, heard, strict=True)
        ]

    def survival(self, dose: Dose, scale: float, seed: int, tick: Tick) -> float:
        """Share of a probe, written at the round's alphas times `scale`, that the filter keeps."""
        made = self._settings.data
        alphas = [alpha * scale for alpha in made.alphas]
        prompts = self.asked(made.n_probe, seed)
        verdicts = self.judge(self.write(prompts, tick, seed=seed, dose=dose, alphas=alphas))
        return fmean(verdict.kept for verdict in verdicts) if verdicts else 0.0

    def text(
        self, tick: Tick | None, dose: Dose | None = None, persona: str | None = None
    ) -> dict[str, float]:
        """Health of free answers to the held-out prompts: the medians, and the share that loops.

        Where the student answers for itself, also how far it is from base: KL(student || base) on them.
        """
        n = self._settings.evaluate.n_answers
        prompts = [self.held_prompts[number % len(self.held_prompts)] for number in range(n)]
        seed = seed_of(self._settings.seed, 0, "answers")
        written = self.write(
            prompts, tick, seed=seed, dose=dose, alphas=(1.0,) if dose else (0.0,), persona=persona
        )
        logps = self.logp(written)
        about = self.relevances(written, logps)
        if self.own is None:
            self.own = _norms(logps)
            self.own_relevance = filter.middle(about)
        own, unit = self.own.perplexity, self.own_relevance
        found = filter.summary(
            [
                filter.health(row.text, logp, own, relevance=value, own_relevance=unit)
                for row, logp, value in zip(written, logps, about, strict=True)
            ],
        )
        found |= {"own_perplexity": own, "own_tail": self.own.tail}
        if persona is not None:
            self.told = _norms(self.logp(written, persona=persona))
            found |= {"told_perplexity": self.told.perplexity, "told_tail": self.told.tail}
        return found if dose or persona else found | self.divergence(written)

    @torch.no_grad()
    def divergence(self, written: Sequence[Completion]) -> dict[str, float]:
        """KL(student || base) over the answers' tokens, without steering: mean and 95th percentile, nats."""
        rows = [
            Example(tuple(self._lm.encode_chat([user(row.prompt)])), tuple(token.id for token in row.tokens))
            for row in written
            if row.tokens
        ]
        output, found = OutputLayer(self._lm), []
        for start in range(0, len(rows), KL_ROWS):
            batch = rows[start : start + KL_ROWS]
            with self._stack.off():
                base_ND = hidden_states(self._lm, batch)
            student_ND = hidden_states(self._lm, batch)
            labels_N = torch.zeros(len(base_ND), dtype=torch.long, device=base_ND.device)
            found += row_losses(output, student_ND, labels_N, "kl_rev", base_ND)[1].tolist()
        if not found:
            return {}
        return {"kl_mean": fmean(found), "kl_p95": filter.quantile(found, 0.95)}

    def persona(self, text: str) -> dict[str, Any]:
        """What a persona as the system prompt makes of the base: profile and health of its answers."""
        told = [replace(vignette, text=f"{text}\n\n{vignette.text}") for vignette in self.vignettes]
        found = self._asked(told, None)
        return {"p": found.p, "coherence": found.coherence, "text": self.text(None, persona=text)}

    def controls(self, layers: Sequence[int], c_stars: Sequence[float]) -> Controls:
        """What random directions do to the base on the run's vignettes, each at its own c*."""
        if self.frame is None or self._base is None:
            raise RoundFailed("The base was not measured: start the run again.")
        how = self.vignettes, self.frame, self._base
        return controls.measure(self._lm, layers, c_stars, *how, persona=self._persona, stop=self._stop)

    def fixed(self, tick: Tick | None = None) -> dict[str, list[str]]:
        """The fixed prompts and their greedy answers."""
        written = self.write(self.fixed_prompts, tick, seed=0, greedy=True)
        return {"prompts": self.fixed_prompts, "texts": [row.text for row in written]}

    def event(self, stage: str, alpha: float, found: Profile, text: dict[str, float]) -> dict[str, Any]:
        """The data of a `profile` event."""
        about: dict[str, Any] = {"cannot_answer": self.cannot_answer} if stage == "base" else {}
        about |= {
            "text_verdict": filter.set_verdict(text),
            "answers_verdict": found.answers_against(self._base)
            if self._base and not self.cannot_answer
            else None,
        }
        return {"stage": stage, "alpha": alpha, **asdict(found), **about, "text": text}


def _norms(logps: Sequence[Sequence[float]]) -> filter.Norms:
    try:
        return filter.norms(logps)
    except ValueError as error:
        raise RoundFailed("The base model writes empty answers: choose another model.") from error
