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
from steer_heal.config import SampleSettings, SettingsError, SteerRequest, build
from steer_heal.records import Profile, SteerFrame

LOG = logging.getLogger(__name__)
TYPING_PAUSE = 0.35
# The browser's clock orders the requests of a session: the value moved last wins, however threads are scheduled.
STAMP = "(...a) => { a[a.length - 1] = performance.timeOrigin + performance.now(); return a; }"


@dataclass
class Newest:
    """Which request of each session is the newest, by the stamp that the browser gave it."""

    stamps: dict[str, float] = field(default_factory=dict)
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

    def forget(self, session: str) -> None:
        with self.lock:
            self.stamps.pop(session, None)


def nothing(n: int = 5) -> tuple[Any, ...]:
    """Leave every output as it is; gradio repeats a generator's last value when it ends, so this must be that."""
    return tuple(gr.skip() for _ in range(n))


def draw(frame: SteerFrame, alpha: float, profiles: tuple[Profile, Profile] | None) -> tuple[str, ...]:
    """One frame as the panel's outputs: base, steered, status, verdict and dose, bars."""
    shown = {} if profiles is None else {"base": profiles[0].p, "steered": profiles[1].p}
    return (
        view.answer(frame.base, done=frame.base_done),
        view.answer(frame.steered, done=frame.done),
        view.status(frame),
        view.dose(alpha, frame) + view.verdict(frame, profiles),
        view.bars(shown) if shown else gr.skip(),  # type: ignore[return-value]
    )


def failed(message: str) -> tuple[Any, ...]:
    """An error in the panel: the answers stay, the status says what to do."""
    return gr.skip(), gr.skip(), view.error(message), gr.skip(), gr.skip()


def answering(engine: Any, newest: Newest, pool: ThreadPoolExecutor) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """The handler that streams a pair; the profile of the prompt is measured beside it."""

    def stream(
        prompt: str, trait: str, alpha: float | None, low: float, high: float, length: float, seed: float | None,
        greedy: bool, stamp: float, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        session = request.session_hash or ""
        if not newest.take(session, stamp):
            yield nothing()
            return
        try:
            if alpha is None:
                raise SettingsError("alpha is empty: type a number, 0 for the unsteered model.")
            sample = build(SampleSettings, max_new_tokens=length, seed=seed or 0, greedy=greedy)
            asked = build(SteerRequest, trait=trait, prompt=prompt, alpha=alpha, band=(low, high), sample=sample)
            profile: Future[tuple[Profile, Profile]] | None = None
            frame = None
            for frame in engine.steer(asked, session=session):
                if frame.superseded or not newest.holds(session, stamp):
                    yield nothing()
                    return
                if profile is None and frame.steered:
                    profile = pool.submit(engine.profile, asked)
                yield draw(frame, asked.alpha, profile.result() if profile and profile.done() else None)
            if frame is not None and profile is not None:
                profiles = profile.result()
                yield draw(frame, asked.alpha, profiles) if newest.holds(session, stamp) else nothing()
        except SettingsError as problem:
            yield failed(str(problem)) if newest.holds(session, stamp) else nothing()
        except Exception:
            LOG.exception("steering failed")
            yield failed(view.BROKE)

    return stream


def after_typing(newest: Newest, stream: Callable[..., Iterator[tuple[Any, ...]]]) -> Callable[..., Any]:
    """The same for a box of text: it begins when the typing pauses."""

    def wait(prompt: str, trait: str, alpha: float | None, low: float, high: float, length: float,
             seed: float | None, greedy: bool, stamp: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        session = request.session_hash or ""
        if newest.take(session, stamp):
            time.sleep(TYPING_PAUSE)
        if not newest.holds(session, stamp):
            yield nothing()
            return
        yield from stream(prompt, trait, alpha, low, high, length, seed, greedy, stamp, request)

    return wait
