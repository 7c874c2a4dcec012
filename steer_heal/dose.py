"""Dose against effect: sweeps over alpha, where coherence breaks, and grids of alpha x layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import data, filter, instrument
from .config import THRESHOLDS, DoseRequest, SettingsError
from .data import AnyFrame
from .generate import Row, complete
from .models import LanguageModel, band_layers, layers_band, rows_that_fit
from .records import Completion, DoseRow, Profile, Stopped, TextHealth, Vignette, trait_shift
from .steering import coefficients
from .vector import SteeringVector

RESOLUTION = 0.05
"""Alphas where coherence falls below a threshold are found to this."""
ROWS_AT_ONCE = 48
"""Answers written in the same passes, when memory allows: where more rows no longer come cheaper."""
PROFILE_PART = 0.4
"""Share of a chunk's time that its profiles take, for the progress bar."""
SECTIONS = 8
MARKS = (THRESHOLDS.mass_degraded, THRESHOLDS.mass_broken)
SWEEP_PART = 0.5
"""Share of a sweep's time before it closes in on the breaks."""

Band = tuple[float, float]
Progress = Callable[[float], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class _Base:
    """What every dose is compared with: the model unsteered."""

    profile: Profile
    perplexity: float | None


def sweep(
    lm: LanguageModel,
    vector: SteeringVector,
    c_star: float,
    request: DoseRequest,
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    prompts_ids: Sequence[Sequence[int]],
    *,
    reading: Profile | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Iterator[DoseRow]:
    """One row for each alpha of the request, in its order; then, with `refine`, rows around each break.

    A row has the profile on the vignettes, the health of answers to the prompts (with shadows, the same
    random numbers at every alpha) and the verdict against the unsteered model. As many alphas as fit go
    through the same passes. `reading`: what the frame is worth on base (`instrument.Frames`): it calibrates
    where the vignettes cannot, and answers of a model that cannot answer judge nothing. `progress` hears of
    the share, also from within.
    Errors: `SettingsError`; `Stopped` when `stop()` says so.
    """
    measure = _Measure(lm, vector, c_star, request, vignettes, frame, prompts_ids, reading, stop)
    asked = list(dict.fromkeys(request.alphas))
    found: list[DoseRow] = []
    size = max(1, measure.batch_size // max(1, len(prompts_ids)))
    for start in range(0, len(asked), size):
        chunk = asked[start : start + size]

        def heard(part: float, done: int = start, n: int = len(chunk)) -> None:
            if progress:
                progress((done + part * n) / len(asked) * (SWEEP_PART if request.refine else 1.0))

        for row in measure.rows(chunk, heard=heard):
            found.append(row)
            yield row
    if request.refine:
        yield from _refine(measure, found)
        if progress:
            progress(1.0)


def breaks(
    rows: Sequence[DoseRow], base_coherence: float | None, marks: Sequence[float] = MARKS
) -> dict[float, float]:
    """For each mark the least positive alpha whose coherence is below mark * base's; none, no entry."""
    if base_coherence is None:
        return {}
    measured = [row for row in rows if row.alpha > 0 and row.coherence is not None]
    rising = sorted(measured, key=lambda row: row.alpha)
    found = {}
    for mark in marks:
        below = [row.alpha for row in rising if not (row.coherence or 0.0) >= mark * base_coherence]
        if below:
            found[mark] = below[0]
    return found


def grid_bands(n_layers: int) -> list[Band]:
    """Every single layer, then every three neighbouring layers, as bands."""
    single = [layers_band(n_layers, layer, layer) for layer in range(n_layers)]
    return single + [layers_band(n_layers, layer, layer + 2) for layer in range(n_layers - 2)]


def grid(
    lm: LanguageModel,
    vector: SteeringVector,
    c_star_of: Callable[[tuple[int, ...]], float],
    request: DoseRequest,
    bands: Sequence[Band],
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    *,
    reading: Profile | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Iterator[DoseRow]:
    """A row for each band x alpha: profile, coherence and trait shift; no free text (its fields are None).

    `c_star_of(layers)` gives a band's own c*, so that alpha means the same everywhere. `reading` and errors
    as in `sweep`.
    """
    target = data.trait(request.trait).target
    base = _base_profile(lm, vignettes, frame, reading, stop)
    unit = answers_unit(base, reading)
    for number, band in enumerate(bands):
        if stop and stop():
            raise Stopped
        layers = band_layers(lm.n_layers, band)
        c_star = c_star_of(layers)
        doses_KL = torch.cat([coefficients(lm.n_layers, layers, alpha * c_star) for alpha in request.alphas])
        profiles = instrument.evaluate(
            lm,
            vignettes,
            frame,
            vector=vector,
            coefficients_KL=doses_KL,
            calibrated=base.calibration,
            stop=stop,
        )
        for alpha, profile in zip(request.alphas, profiles, strict=True):
            ratio = _ratio(profile.coherence, unit)
            verdict = None if ratio is None else filter.mass_verdict(ratio)
            shift = trait_shift(profile.p, base.p, target)
            yield DoseRow(alpha, band, profile, profile.coherence, None, None, None, shift, verdict)
        if progress:
            progress((number + 1) / len(bands))


class _Measure:
    """One sweep's model, data and base; measures some alphas together."""

    def __init__(
        self,
        lm: LanguageModel,
        vector: SteeringVector,
        c_star: float,
        request: DoseRequest,
        vignettes: Sequence[Vignette],
        frame: AnyFrame,
        prompts_ids: Sequence[Sequence[int]],
        reading: Profile | None,
        stop: Stop | None,
    ) -> None:
        if not c_star > 0.0:
            raise SettingsError("c* must be positive: calibrate first.")
        self._lm, self._vector, self._c_star, self._request = lm, vector, c_star, request
        self._vignettes, self._frame, self._reading, self._stop = vignettes, frame, reading, stop
        self._prompts = [tuple(prompt) for prompt in prompts_ids]
        self._layers = band_layers(lm.n_layers, request.band)
        self._target = data.trait(request.trait).target
        longest = max((len(prompt) for prompt in self._prompts), default=0)
        self.batch_size = rows_that_fit(lm, longest + request.sample.max_new_tokens, ROWS_AT_ONCE)
        self.base = self._measure_base()

    def rows(
        self, alphas: Sequence[float], *, text: bool = True, heard: Callable[[float], None] = lambda _: None
    ) -> list[DoseRow]:
        """The rows of these alphas, measured in the same passes; without free text when `text` is False.

        `heard` is told the share done, token by token.
        """
        profiles = self._profiles(alphas)
        heard(PROFILE_PART)
        tokens = itertools.count(1)

        def stop() -> bool:
            heard(PROFILE_PART + (1 - PROFILE_PART) * min(1.0, next(tokens) / self._n_steps(len(alphas))))
            return bool(self._stop and self._stop())

        answers = self._answers(alphas, stop) if text and self._prompts else [[] for _ in alphas]
        heard(1.0)
        return [
            self._row(alpha, profile, written)
            for alpha, profile, written in zip(alphas, profiles, answers, strict=True)
        ]

    def _measure_base(self) -> _Base:
        profile = _base_profile(self._lm, self._vignettes, self._frame, self._reading, self._stop)
        written = self._answers([0.0], self._stop)[0] if self._prompts else []
        return _Base(profile, filter.summary(_healths(written, None)).get("perplexity"))

    def _row(self, alpha: float, profile: Profile, written: Sequence[Completion]) -> DoseRow:
        texts = _healths(written, self.base.perplexity)
        text = filter.summary(texts)
        kls = [math.inf if math.isnan(kl) else kl for row in written for kl in _kls(row)]
        return DoseRow(
            alpha=alpha,
            band=self._request.band,
            profile=profile,
            coherence=profile.coherence,
            kl_p95=filter.quantile(kls, 0.95) if kls else None,
            repetition=text.get("repetition"),
            perplexity=text.get("perplexity"),
            trait_shift=trait_shift(profile.p, self.base.profile.p, self._target),
            verdict=filter.set_verdict(_ratio(profile.coherence, self.unit), text),
            sample=written[0].text if written else "",
            perplexity_ratio=text.get("perplexity_ratio"),
            looping=text.get("looping"),
            texts=tuple(texts),
        )

    @property
    def unit(self) -> float | None:
        """The coherence that those of the doses are measured by."""
        return answers_unit(self.base.profile, self._reading)

    def _coefficients_KL(self, alphas: Sequence[float]) -> Tensor:
        return torch.cat([coefficients(self._lm.n_layers, self._layers, a * self._c_star) for a in alphas])

    def _profiles(self, alphas: Sequence[float]) -> list[Profile]:
        return instrument.evaluate(
            self._lm,
            self._vignettes,
            self._frame,
            vector=self._vector,
            coefficients_KL=self._coefficients_KL(alphas),
            calibrated=self.base.profile.calibration,
            stop=self._stop,
        )

    def _n_steps(self, n_alphas: int) -> int:
        """Tokens that answering takes at most, batch after batch."""
        batches = math.ceil(n_alphas * len(self._prompts) / self.batch_size)
        return max(1, batches * self._request.sample.max_new_tokens)

    def _answers(self, alphas: Sequence[float], stop: Stop | None) -> list[list[Completion]]:
        rows = [
            Row(prompt, dose_L, shadow=True, alpha=alpha, noise=number)
            for alpha, dose_L in zip(alphas, self._coefficients_KL(alphas), strict=True)
            for number, prompt in enumerate(self._prompts)
        ]
        written = complete(
            self._lm, rows, self._vector.steers, self._request.sample, batch_size=self.batch_size, stop=stop
        )
        if self._stop and self._stop():
            raise Stopped
        n = len(self._prompts)
        return [written[start : start + n] for start in range(0, len(written), n)]


def _refine(measure: _Measure, rows: Sequence[DoseRow]) -> Iterator[DoseRow]:
    """Close in on each break: cut the interval before it until it is narrow, then show both its ends."""
    known = {row.alpha: row for row in rows if row.alpha > 0}
    base = measure.unit or 0.0
    for mark, high in breaks(rows, measure.unit).items():
        low = max((alpha for alpha in known if alpha < high), default=0.0)
        while high - low > RESOLUTION + 1e-9:
            step = max((high - low) / SECTIONS, RESOLUTION)
            inside = [round(low + step * i, 4) for i in range(1, SECTIONS) if low + step * i < high - 1e-9]
            fresh = measure.rows([alpha for alpha in inside if alpha not in known], text=False)
            known.update((row.alpha, row) for row in fresh)
            below = [a for a in (*inside, high) if not (known[a].coherence or 0.0) >= mark * base]
            high = below[0]
            low = max(alpha for alpha in (low, *inside) if alpha < high)
        yield from measure.rows([alpha for alpha in (low, high) if alpha > 0.0])


def _kls(row: Completion) -> list[float]:
    return [token.kl for token in row.tokens if token.kl is not None]


def _healths(written: Sequence[Completion], own: float | None) -> list[TextHealth]:
    """Health of each answer from its shadow's probabilities."""
    found = []
    for row in written:
        p_base = [token.p_base for token in row.tokens if token.p_base is not None]
        logp = [math.log(p) if p > 0.0 else -math.inf for p in p_base]
        kl = [math.inf if math.isnan(value) else value for value in _kls(row)]
        found.append(filter.health(row.text, [max(value, -100.0) for value in logp], own, kl=kl))
    return found


def answers_unit(base: Profile, reading: Profile | None) -> float | None:
    """Base's coherence, which those of doses are judged by; None for a cloze, which has none, and for a model
    that cannot answer: what it answers judges nothing."""
    worth = base.agreement if base.agreement.value is not None or reading is None else reading.agreement
    return None if worth.cannot_answer else base.coherence


def _base_profile(
    lm: LanguageModel,
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    reading: Profile | None,
    stop: Stop | None,
) -> Profile:
    given = reading.calibration if reading and not instrument.calibrates(vignettes) else ()
    return instrument.evaluate(lm, vignettes, frame, calibrated=given, stop=stop)[0]


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
