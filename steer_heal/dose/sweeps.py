"""Dose against effect: sweeps over alpha, where text breaks, and grids of alpha x layer."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from steer_heal import data
from steer_heal.config import DoseRequest, SettingsError
from steer_heal.data import AnyFrame
from steer_heal.dose.mixed import Steered
from steer_heal.evaluate import text_health
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.cloze import calibrates
from steer_heal.evaluate.relevance import relevances
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, band_layers, layers_band, rows_that_fit
from steer_heal.records import (
    AnswersWord,
    Completion,
    DoseRow,
    Profile,
    Stopped,
    TextHealth,
    TextWord,
    Vignette,
    trait_shift,
)

RESOLUTION = 0.1
"""Alphas where the text's word changes are found to this: the word is that of a few answers."""
SECTIONS = 5
ROWS_AT_ONCE = 48
"""Answers written in the same passes, when memory allows: where more rows no longer come cheaper."""
PROFILE_PART = 0.4
"""Share of a chunk's time that its profiles take, for the progress bar."""
SWEEP_PART = 0.5
"""Share of a sweep's time before it closes in on the breaks."""
GRID_PROMPTS, GRID_TOKENS = 2, 20
"""Answers a cell of a grid has, and how long: enough for a word, and little beside the band's calibration."""
READINGS = ("repetition", "perplexity", "perplexity_ratio", "looping", "relevance", "relevance_ratio")
"""Of the answers' text, as a row of doses has them."""
_LEAST_LOGP = -100.0

Band = tuple[float, float]
Place = tuple[Band, Steered]
"""The steered layers as they are asked for, and the vector with its c* there."""
Progress = Callable[[float], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class _Base:
    """What every dose is compared with: the model unsteered, and the medians of its own text."""

    profile: Profile
    text: dict[str, float]
    silent: bool


def sweep(
    lm: LanguageModel,
    steered_by: Steered,
    request: DoseRequest,
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    prompts_ids: Sequence[Sequence[int]],
    *,
    reading: Profile | None = None,
    on_base: Callable[[Profile], None] = lambda _: None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Iterator[DoseRow]:
    """One row for each alpha of the request, in its order; then, with `refine`, rows around each break.

    A row has the profile on the vignettes, the health of answers to the prompts (with shadows, the same
    random numbers at every alpha) and the words of both against the unsteered model. As many alphas as fit go
    through the same passes. `reading`: what the frame is worth on base (`Frames`): it calibrates
    where the vignettes cannot, and answers of a model that cannot answer judge nothing. `on_base` hears the
    unsteered profile, `progress` the share, also from within.
    Errors: `SettingsError`; `Stopped` when `stop()` says so.
    """
    if steered_by.c_star is not None and not steered_by.c_star > 0.0:
        raise SettingsError("c* must be positive: calibrate first.")
    place = request.band, steered_by
    measure = _Measure(lm, request, vignettes, frame, prompts_ids, reading, stop)
    on_base(measure.base.profile)
    asked = list(dict.fromkeys(request.alphas))
    found: list[DoseRow] = []
    size = max(1, measure.batch_size // max(1, len(prompts_ids)))
    for start in range(0, len(asked), size):
        chunk = asked[start : start + size]

        def heard(part: float, done: int = start, n: int = len(chunk)) -> None:
            if progress:
                progress((done + part * n) / len(asked) * (SWEEP_PART if request.refine else 1.0))

        for row in measure.rows(place, chunk, heard=heard):
            found.append(row)
            yield row
    if request.refine:
        yield from _refine(measure, place, found)
        if progress:
            progress(1.0)


def breaks(rows: Sequence[DoseRow]) -> dict[str, float]:
    """For each word but the best, of the text and of the answers, the least positive alpha that is as bad;
    none, no entry."""
    rising = sorted((row for row in rows if row.alpha > 0), key=lambda row: row.alpha)
    found = {}
    for words, of in ((get_args(TextWord), "verdict"), (get_args(AnswersWord), "answers_verdict")):
        for place, word in enumerate(words[1:], 1):
            bad = [row.alpha for row in rising if getattr(row, of) in words[place:]]
            if bad:
                found[word] = bad[0]
    return found


def grid_bands(n_layers: int, *, coarse: bool = False) -> list[Band]:
    """Every single layer, then every three neighbouring layers, as bands; `coarse`: of the latter as few as
    hold every layer, where there are three."""
    single = [layers_band(n_layers, layer, layer) for layer in range(n_layers)]
    three = [layers_band(n_layers, layer, layer + 2) for layer in range(n_layers - 2)]
    if coarse and three:
        return list(dict.fromkeys([*three[::3], three[-1]]))
    return single + three


def grid(
    lm: LanguageModel,
    calibrated_at: Callable[[tuple[int, ...]], Steered],
    request: DoseRequest,
    bands: Sequence[Band],
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    prompts_ids: Sequence[Sequence[int]],
    *,
    reading: Profile | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Iterator[DoseRow]:
    """A row for each band x alpha, as in `sweep`, but with at most `GRID_PROMPTS` answers of `GRID_TOKENS`.

    `calibrated_at(layers)` gives the vector with a band's own c*, so that alpha means the same everywhere.
    """
    n_tokens = min(GRID_TOKENS, request.sample.max_new_tokens)
    short = request.model_copy(
        update={"sample": request.sample.model_copy(update={"max_new_tokens": n_tokens})}
    )
    measure = _Measure(lm, short, vignettes, frame, prompts_ids[:GRID_PROMPTS], reading, stop)
    for number, band in enumerate(bands):
        if stop and stop():
            raise Stopped
        place = band, calibrated_at(band_layers(lm.n_layers, band))
        yield from measure.rows(place, request.alphas)
        if progress:
            progress((number + 1) / len(bands))


class _Measure:
    """One sweep's or grid's model, data and base; measures some alphas together."""

    def __init__(
        self,
        lm: LanguageModel,
        request: DoseRequest,
        vignettes: Sequence[Vignette],
        frame: AnyFrame,
        prompts_ids: Sequence[Sequence[int]],
        reading: Profile | None,
        stop: Stop | None,
    ) -> None:
        self._lm, self._request = lm, request
        self._vignettes, self._frame, self._stop = vignettes, frame, stop
        self._prompts = [tuple(prompt) for prompt in prompts_ids]
        self._target = data.trait(request.trait).target
        longest = max((len(prompt) for prompt in self._prompts), default=0)
        self.batch_size = rows_that_fit(lm, longest + request.sample.max_new_tokens, ROWS_AT_ONCE)
        self.base = self._measure_base(reading)

    def rows(
        self, place: Place, alphas: Sequence[float], *, heard: Callable[[float], None] = lambda _: None
    ) -> list[DoseRow]:
        """The rows of these alphas, measured in the same passes; `heard` is told the share done, token by
        token."""
        band, steered_by = place
        profiles = evaluate(
            self._lm, self._vignettes, self._frame, vector=steered_by.steers,
            coefficients_RL=steered_by.coefficients_RL(*alphas),
            calibrated=self.base.profile.calibration, stop=self._stop,
        )  # fmt: skip
        heard(PROFILE_PART)
        tokens = itertools.count(1)

        def stop() -> bool:
            heard(PROFILE_PART + (1 - PROFILE_PART) * min(1.0, next(tokens) / self._n_steps(len(alphas))))
            return bool(self._stop and self._stop())

        answers = self._answers(alphas, steered_by, stop)
        texts = self._healths([row for written in answers for row in written], self.base.text)
        heard(1.0)
        n = len(self._prompts)
        return [
            self._row(band, alpha, profile, written, texts[n * i : n * (i + 1)])
            for i, (alpha, profile, written) in enumerate(zip(alphas, profiles, answers, strict=True))
        ]

    def _measure_base(self, reading: Profile | None) -> _Base:
        given = reading.calibration if reading and not calibrates(self._vignettes) else ()
        profile = evaluate(self._lm, self._vignettes, self._frame, calibrated=given, stop=self._stop)[0]
        worth = profile.agreement
        if reading is not None and worth.value is None:
            worth = reading.agreement
        texts = self._healths(self._answers([0.0], None, self._stop)[0], {})
        return _Base(profile, text_health.summary(texts), worth.cannot_answer)

    def _row(
        self,
        band: Band,
        alpha: float,
        profile: Profile,
        written: Sequence[Completion],
        texts: Sequence[TextHealth],
    ) -> DoseRow:
        text = text_health.summary(texts)
        kls = [kl for row in written for kl in _kls(row)]
        return DoseRow(
            alpha=alpha,
            band=band,
            profile=profile,
            coherence=profile.coherence,
            kl_p95=text_health.quantile(kls, 0.95) if kls else None,
            **{name: text.get(name) for name in READINGS},
            trait_shift=trait_shift(profile.p, self.base.profile.p, self._target),
            verdict=text_health.set_verdict(text),
            sample=written[0].text if written else "",
            texts=tuple(texts),
            answers_verdict=None if self.base.silent else profile.answers_against(self.base.profile),
        )

    def _healths(self, written: Sequence[Completion], base: dict[str, float]) -> list[TextHealth]:
        """Health of each answer, alpha by alpha the prompts in turn, from its shadow's probabilities."""
        logps = [
            [max(math.log(p), _LEAST_LOGP) if p > 0.0 else _LEAST_LOGP for p in _p_base(row)]
            for row in written
        ]
        prompts = [self._prompts[number % len(self._prompts)] for number in range(len(written))]
        ids = [[token.id for token in row.tokens] for row in written]
        about = relevances(self._lm, prompts, ids, logps, stop=self._stop)
        own = base.get("perplexity"), base.get("relevance")
        return [
            text_health.health(row.text, logp, own[0], kl=_kls(row), relevance=value, own_relevance=own[1])
            for row, logp, value in zip(written, logps, about, strict=True)
        ]

    def _n_steps(self, n_alphas: int) -> int:
        """Tokens that answering takes at most, batch after batch."""
        batches = math.ceil(n_alphas * len(self._prompts) / self.batch_size)
        return max(1, batches * self._request.sample.max_new_tokens)

    def _answers(
        self, alphas: Sequence[float], steered_by: Steered | None, stop: Stop | None
    ) -> list[list[Completion]]:
        shape = self._lm.n_layers, self._lm.width
        doses_RL = torch.zeros(1, shape[0]) if steered_by is None else steered_by.coefficients_RL(*alphas)
        directions_LD = torch.zeros(shape) if steered_by is None else steered_by.steers
        rows = [
            Row(prompt, dose_L, shadow=True, alpha=alpha, rng_stream=number, where=self._request.gate)
            for alpha, dose_L in zip(alphas, doses_RL, strict=True)
            for number, prompt in enumerate(self._prompts)
        ]
        if not rows:
            return [[] for _ in alphas]
        written = complete(
            self._lm, rows, directions_LD, self._request.sample, batch_size=self.batch_size, stop=stop
        )
        if self._stop and self._stop():
            raise Stopped
        n = len(self._prompts)
        return [written[start : start + n] for start in range(0, len(written), n)]


def _refine(measure: _Measure, place: Place, rows: Sequence[DoseRow]) -> Iterator[DoseRow]:
    """Close in on each alpha where the text's word changes: cut the interval before it until it is narrow."""
    found = list(rows)
    for word in get_args(TextWord)[1:]:
        while word in (at := breaks(found)):
            low = max((row.alpha for row in found if 0.0 < row.alpha < at[word]), default=0.0)
            width = at[word] - low
            if width <= RESOLUTION + 1e-9:
                break
            step = max(width / SECTIONS, RESOLUTION)
            inside = [round(low + step * i, 4) for i in range(1, SECTIONS)]
            fresh = measure.rows(place, [alpha for alpha in inside if alpha < at[word] - 1e-9])
            found += fresh
            yield from fresh


def _kls(row: Completion) -> list[float]:
    """KL of each token; one that is no number is infinite."""
    return [math.inf if math.isnan(token.kl) else token.kl for token in row.tokens if token.kl is not None]


def _p_base(row: Completion) -> list[float]:
    return [token.p_base for token in row.tokens if token.p_base is not None]
