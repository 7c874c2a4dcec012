"""Sweeps and grids of doses, in slices, so that answers can be written in between."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from steer_heal import data
from steer_heal.config import EVERYWHERE, DoseRequest
from steer_heal.dose import controls, sweeps
from steer_heal.engine.answer import encode
from steer_heal.engine.preemptible import while_wanted
from steer_heal.engine.requests import Request
from steer_heal.engine.vectors import Say, Vectors
from steer_heal.evaluate.frames import Frames
from steer_heal.models import LanguageModel
from steer_heal.records import DoseRow, Profile, Stopped, Sweep, Vignette

DOSE_PROMPTS = 6
"""How many prompts a sweep answers freely when what is asked names none."""

CONTROLS_FROM = 0.7
"""The share done when a sweep's rows are there and its controls are not."""

STEP = 0.02
"""Share done between two items that bring no new row."""

Progress = Callable[[float], None]
Rows = Callable[[Callable[[], bool], Progress], Iterator[DoseRow]]


class Sweeps:
    """Measures doses on one model. Between two slices the model has no hook on it."""

    def __init__(self, lm: LanguageModel, vectors: Vectors, frames: Frames) -> None:
        self._lm, self._vectors, self._frames = lm, vectors, frames

    def dose(self, asked: DoseRequest, request: Request[Sweep | None]) -> Iterator[Sweep | None]:
        """The rows so far by alpha whenever there is news, None after each slice in between."""
        held: dict[str, Any] = {}
        asked_in = frame_of(asked)

        def rows(stop: Callable[[], bool], progress: Progress) -> Iterator[DoseRow]:
            steer = self._vectors.of(asked, say=ending(stop))
            at = held["nat"] = self._vectors.one_nat(asked, say=ending(stop)) if asked.controls else 1.0
            doses = asked.model_copy(update={"alphas": (*asked.alphas, at)}) if asked.mix and at else asked
            reading = self._frames.of(asked_in, stop=stop)
            vignettes, frame = self._vignettes(asked), data.frame(reading.frame)
            n_controls = asked.controls if at else 0
            part = CONTROLS_FROM if n_controls else 1.0
            base: list[Profile] = []
            for row in sweeps.sweep(
                self._lm, steer, doses, vignettes, frame,
                self._prompts(asked), reading=reading, on_base=base.append,
                progress=lambda share: progress(part * share), stop=stop,
            ):  # fmt: skip
                usual = not asked.mix and asked.gate == EVERYWHERE  # the KL of others is measured by itself
                if usual and row.kl_p95 is not None and math.isfinite(row.kl_p95):
                    steer.swept[row.alpha] = row.kl_p95
                yield row
            if n_controls:
                found = self._vectors.random(asked.trait, steer.layers, n_controls, say=ending(stop))
                persona = data.trait(asked.trait).positive
                how = steer.layers, found, vignettes, frame, base[0]
                held["controls"] = controls.measure(self._lm, *how, persona=persona, stop=stop)

        for item in _streamed(rows, request):
            yield None if item is None else replace(self._by_alpha(item, asked_in), **held)

    def grid(self, asked: DoseRequest, request: Request[Sweep | None]) -> Iterator[Sweep | None]:
        """The cells so far whenever there is news, None after each slice in between."""
        asked_in = frame_of(asked)

        def rows(stop: Callable[[], bool], progress: Progress) -> Iterator[DoseRow]:
            calibrated_at = partial(self._vectors.of_layers, asked, say=ending(stop))
            reading = self._frames.of(asked_in, stop=stop)
            return sweeps.grid(
                self._lm, calibrated_at, asked,
                sweeps.grid_bands(self._lm.n_layers, coarse=asked.coarse), self._vignettes(asked),
                data.frame(reading.frame),
                self._prompts(asked), reading=reading, progress=progress, stop=stop,
            )  # fmt: skip

        for item in _streamed(rows, request):
            yield None if item is None else self._with_reading(item, asked_in)

    def _with_reading(self, item: Sweep, frame: str) -> Sweep:
        return replace(item, reading=self._frames.of(frame)) if item.rows else item

    def _by_alpha(self, item: Sweep, frame: str) -> Sweep:
        item = self._with_reading(item, frame)
        rows = sorted(item.rows, key=lambda row: row.alpha)
        return replace(item, rows=rows, breaks=sweeps.breaks(rows))

    def _prompts(self, asked: DoseRequest) -> list[tuple[int, ...]]:
        texts = asked.prompts or self._lm.material.held_out_prompts()[-DOSE_PROMPTS:]
        return [encode(self._lm, text) for text in texts]

    def _vignettes(self, asked: DoseRequest) -> list[Vignette]:
        if asked.prompts and asked.n_vignettes is None:
            texts = enumerate(asked.prompts)
            return [Vignette(f"prompt {i}", "", text, data.CONDITION) for i, text in texts]
        return self._lm.material.vignettes(condition=data.CONDITION, limit=asked.n_vignettes)


def frame_of(asked: DoseRequest) -> str:
    """The frame in which the trait is measured; errors as `data.frame_of`."""
    return data.frame_of(data.trait(asked.trait), asked.frame)


def ending(stop: Callable[[], bool]) -> Say:
    """Ends what is measured, by `Stopped`, once `stop()` says so."""

    def say(_text: str) -> None:
        if stop():
            raise Stopped

    return say


def _streamed(rows: Rows, request: Request[Sweep | None]) -> Iterator[Sweep | None]:
    """The rows as they grow; nothing more once the request is over."""
    share, told, found = 0.0, 0.0, []

    def progress(done: float) -> None:
        nonlocal share
        share = done

    yield Sweep(0.0, [])
    try:
        for row in while_wanted(request, lambda stop: rows(stop, progress)):
            if row is not None:
                found.append(row)
            news = row is not None or share >= told + STEP
            told = share if news else told
            yield Sweep(share, list(found)) if news else None
    except Stopped:
        return
    yield Sweep(1.0, list(found))
