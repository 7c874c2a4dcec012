"""Streaming a pair of answers to one browser session: the newest request wins, errors stay in place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import view
from components.controls import FORM, sample
from steer_heal.config import SettingsError, SteerRequest, build
from steer_heal.records import Profile, SteerFrame

LOG = logging.getLogger(__name__)
TYPING_PAUSE = 0.35
# The browser's clock orders a session's requests: the value moved last wins, however threads are scheduled.
STAMP = "(...a) => { a[a.length - 1] = performance.timeOrigin + performance.now(); return a; }"


@dataclass
class Newest:
    """Which request of each session is the newest, by the stamp that the browser gave it."""

    stamps: dict[str, float] = field(default_factory=dict)
    bases: dict[str, tuple[SteerRequest, int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, session: str, stamp: float) -> bool:
        """Whether this request is the newest so far; it then is the one that counts."""
        with self.lock:
            if stamp < self.stamps.get(session, 0.0):
                return False
            self.stamps[session] = stamp
            return True

    def holds(self, session: str, stamp: float) -> bool:
        return self.stamps.get(session) == stamp

    def grows(self, session: str, asked: SteerRequest, n: int) -> bool:
        """Whether `n` tokens of base's answer are more than the session has in view.

        Base is the same for any alpha, trait and band, so what is in view stays until the text outgrows it.
        """
        unsteered = asked.model_copy(update={"alpha": 0.0, "trait": "", "band": (0.0, 1.0)})
        with self.lock:
            before, seen = self.bases.get(session, (None, 0))
            grown = before != unsteered or n >= max(1, seen)
            if grown:
                self.bases[session] = (unsteered, n)
        return grown

    def forget(self, session: str) -> None:
        with self.lock:
            self.stamps.pop(session, None)
            self.bases.pop(session, None)


def nothing(n: int = 6) -> tuple[Any, ...]:
    """Leave every output as it is. Gradio sends a generator's last value again when it ends: be this."""
    return tuple(gr.skip() for _ in range(n))


def asked_for(form: dict[str, Any]) -> SteerRequest:
    """The form as a request. Errors: `SettingsError`."""
    if form["exact"] is None:
        raise SettingsError("alpha is empty: type a number, 0 for the unsteered model.")
    return build(
        SteerRequest, trait=form["trait"], prompt=form["prompt"], alpha=form["exact"],
        band=(form["low"], form["high"]), sample=sample(form), method=form["method"],
    )  # fmt: skip


def draw(
    frame: SteerFrame, alpha: float, profiles: tuple[Profile, Profile] | None, grows: bool
) -> tuple[Any, ...]:
    """One frame as the panel's outputs: base (when it `grows`), steered, status, dose, verdict, bars."""
    shown = {} if profiles is None else {"base": profiles[0].p, "steered": profiles[1].p}
    return (
        view.answer(frame.base, done=frame.base_done) if grows else gr.skip(),
        view.answer(frame.steered, done=frame.done),
        view.status(frame),
        view.dose(alpha, frame),
        view.verdict(frame, profiles),
        view.bars(shown) if shown else gr.skip(),
    )


def failed(message: str) -> tuple[Any, ...]:
    """An error in the panel: the answers stay, the status says what to do."""
    return gr.skip(), gr.skip(), view.error(message), *nothing(3)


def answering(
    engine: Any, newest: Newest, pool: ThreadPoolExecutor, pause: float = 0.0
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """The handler that streams a pair; the profile of the prompt is measured beside it.

    `pause`: seconds without a newer request to wait for, where every key typed is a request.
    """

    def answer(asked: SteerRequest, session: str, stamp: float) -> Iterator[tuple[Any, ...]]:
        profile: Future[tuple[Profile, Profile]] | None = None
        frame = None
        for frame in engine.steer(asked, session=session):
            if frame.superseded or not newest.holds(session, stamp):
                yield nothing()
                return
            if profile is None and frame.steered:
                profile = pool.submit(engine.profile, asked)
            profiles = profile.result() if profile and profile.done() else None
            yield draw(frame, asked.alpha, profiles, newest.grows(session, asked, len(frame.base)))
        if frame is not None and profile is not None:
            grows = newest.grows(session, asked, len(frame.base))
            drawn = draw(frame, asked.alpha, profile.result(), grows)
            yield drawn if newest.holds(session, stamp) else nothing()

    def stream(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        *form, stamp = values
        session = request.session_hash or ""
        if newest.take(session, stamp):
            time.sleep(pause)
        if not newest.holds(session, stamp):
            yield nothing()
            return
        try:
            yield from answer(asked_for(dict(zip(FORM, form, strict=True))), session, stamp)
        except SettingsError as problem:
            yield failed(str(problem)) if newest.holds(session, stamp) else nothing()
        except Exception:
            LOG.exception("steering failed")
            yield failed(view.BROKE)

    return stream
