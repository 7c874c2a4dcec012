"""Streaming a pair of answers to one browser session: the newest request wins, errors stay in place."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from components import view
from components.controls import filled, sample
from components.engine import Engine
from steer_heal.config import EVERYWHERE, SettingsError, SteerRequest, build
from steer_heal.records import MeasuredDose, Profile, SteerFrame, Token

LOG = logging.getLogger(__name__)
TYPING_PAUSE = 0.35
STEP_S = 0.25
"""Between two answers of a session: what is moved meanwhile counts by its last value."""
LONGEST_S = 2.0
"""How long a newer request waits at most for the words of the one before."""
LOOK_S = 0.02
WORDS = 4
"""Tokens that are a text to read: until then the one before stays."""
SETTLED = 8
"""Tokens after which what is asked is taken to stay, and its profile is measured."""
# The browser's clock orders a session's requests: the value moved last wins, however threads are scheduled.
STAMP = "(...a) => { a[a.length - 1] = performance.timeOrigin + performance.now(); return a; }"


@dataclass
class Shown:
    """What a session has in view: the request that is answered there, since when, and whether the next may
    take its place; the steered text; and of which request and model base's is, and how many tokens."""

    stamp: float = -math.inf
    since: float = -math.inf
    ripe: bool = True
    steered: tuple[Token, ...] = ()
    base: tuple[str, SteerRequest] | None = None
    n_base: int = 0


@dataclass
class Newest:
    """Which request of each session is the newest, by the stamp that the browser gave it, which is shown, and
    when Stop was pressed: it counts for what was asked before, even where that reaches the server later.

    A newer request does not take the place of the one in view before that has words to read, so that a dose
    that is dragged is read while it moves.
    """

    stamps: dict[str, float] = field(default_factory=dict)
    halts: dict[str, float] = field(default_factory=dict)
    views: dict[str, Shown] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, session: str, stamp: float) -> bool:
        """Whether this request is the newest so far; it then is the one that counts."""
        with self.lock:
            if stamp < self.stamps.get(session, 0.0):
                return False
            self.stamps[session] = stamp
            return True

    def holds(self, session: str, stamp: float) -> bool:
        return self.stamps.get(session) == stamp and not self.halted(session, stamp)

    def halted(self, session: str, stamp: float) -> bool:
        return stamp <= self.halts.get(session, -math.inf)

    def view(self, session: str) -> Shown:
        return self.views.setdefault(session, Shown())

    def begins(self, session: str, stamp: float) -> bool:
        """Waits until this request may be answered; whether it may: not once there is a newer one."""
        while self.holds(session, stamp):
            with self.lock:
                view, now = self.view(session), time.monotonic()
                if now >= view.since + (STEP_S if view.ripe else LONGEST_S):
                    view.stamp, view.since, view.ripe = stamp, now, False
                    return True
            time.sleep(LOOK_S)
        return False

    def shows(self, session: str, stamp: float) -> bool:
        """Whether it is this request that is answered in view."""
        return session in self.views and self.views[session].stamp == stamp

    def ended(self, session: str, stamp: float) -> None:
        """The next need not wait for this one's words."""
        if self.shows(session, stamp):
            self.view(session).ripe = True

    def halt(self, session: str, stamp: float) -> None:
        """Nothing that was asked until then begins any more."""
        with self.lock:
            self.halts[session] = stamp

    def grows(self, session: str, asked: SteerRequest, n: int, model: str = "") -> bool:
        """Whether `n` tokens of base's answer are more than the session has in view.

        Base is the same for any alpha, trait, band and method, so what is in view stays until it is outgrown.
        """
        unsteered = (model, SteerRequest(prompt=asked.prompt, sample=asked.sample))
        view = self.view(session)
        grown = view.base != unsteered or n >= max(1, view.n_base)
        if grown:
            view.base, view.n_base = unsteered, n
        return grown

    def forget(self, session: str) -> None:
        with self.lock:
            self.stamps.pop(session, None)
            self.halts.pop(session, None)
            self.views.pop(session, None)


def nothing(n: int = 7) -> tuple[Any, ...]:
    """Leave every output as it is. Gradio sends a generator's last value again when it ends: be this."""
    return tuple(gr.skip() for _ in range(n))


def asked_for(form: dict[str, Any]) -> SteerRequest:
    """The form, `filled`, as a request. Errors: `SettingsError`."""
    if form["exact"] is None:
        raise SettingsError("alpha is empty: type a number, 0 for the unsteered model.")
    return build(
        SteerRequest, trait=form["trait"], prompt=form["prompt"], alpha=form["exact"],
        band=form["band"], sample=sample(form), method=form["method"], where=form["where"],
        mix=form["mix"] or "", carried=True,
    )  # fmt: skip


def draw(
    frame: SteerFrame,
    asked: SteerRequest,
    profiles: tuple[Profile, Profile] | None,
    grows: bool,
    before: tuple[Token, ...] = (),
) -> tuple[Any, ...]:
    """One frame of what was `asked` as the panel's outputs: base (when it `grows`), steered, status, dose,
    verdict, measures, bars. The steered text `before` stays, dimmed, until the new one can be read."""
    bars = gr.skip()
    if profiles is not None:
        at_0, at_alpha = profiles
        bars = view.bars({"base": at_0.p, "steered": at_alpha.p}) + view.worth(at_0.agreement, at_0.frame)
        bars += "" if asked.gate == EVERYWHERE else view.note(f"Measured {view.UNGATED}.")
    if readable(frame) or not before:
        steered = view.answer(frame.steered, done=frame.done, empty=frame.message or "…")
        judged = (
            view.text_word(frame.health) or ("" if frame.done else gr.skip()),
            view.measures(frame, profiles),
        )
    else:
        steered, judged = view.stale(before), nothing(2)
    return (
        view.answer(frame.base, done=frame.base_done) if grows else gr.skip(),
        steered,
        view.status(frame),
        view.dose(asked.alpha, frame, asked.gate, asked.mix),
        *judged,
        bars,
    )


def readable(frame: SteerFrame) -> bool:
    """Whether there is a steered text to read: some words of it, or all."""
    return len(frame.steered) >= WORDS or (frame.done and bool(frame.steered))


def failed(message: str) -> tuple[Any, ...]:
    """An error in the panel: the answers stay, the status says what to do."""
    return only_status(view.error(message))


def only_status(shown: str) -> tuple[Any, ...]:
    return gr.skip(), gr.skip(), shown, *nothing(4)


def answering(
    engine: Engine, newest: Newest, pool: ThreadPoolExecutor, pause: float = 0.0
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """The handler that streams a pair; the profile of the prompt is measured beside it.

    `pause`: seconds without a newer request to wait for, where every key typed is a request.
    """

    def answer(asked: SteerRequest, session: str, stamp: float) -> Iterator[tuple[Any, ...]]:
        profile: Future[tuple[Profile, Profile]] | None = None
        dose: MeasuredDose | None = None
        frame, seen, before = None, newest.view(session), newest.view(session).steered
        model = engine.info.name

        def drawn(frame: SteerFrame, profiles: tuple[Profile, Profile] | None) -> tuple[Any, ...]:
            grows = newest.grows(session, asked, len(frame.base), model)
            if dose is not None:
                frame = replace(frame, dose_nats=dose.nats, message=frame.message or dose.message)
            return draw(frame, asked, profiles, grows, before)

        for frame in engine.steer(asked, session=session):
            if frame.superseded or not newest.shows(session, stamp):
                yield nothing()
                return
            if newest.halted(session, stamp):  # Stop came before the engine knew of this request
                engine.stop(session)
            seen.ripe = readable(frame) or bool(frame.message)
            if readable(frame):
                seen.steered = frame.steered
            settled = frame.done or len(frame.steered) >= SETTLED
            if profile is None and frame.steered and settled and newest.holds(session, stamp):
                profile = pool.submit(engine.profile, asked)
            yield drawn(frame, profile.result() if profile and profile.done() else None)
        if frame is not None and profile is not None:
            profiles = profile.result()
            if asked.has_own_kl and newest.holds(session, stamp):
                yield drawn(frame, profiles)
                dose = engine.kl(asked, session=session)
            last = drawn(frame, profiles)
            yield last if newest.shows(session, stamp) else nothing()

    def stream(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        *form, stamp = values
        session = request.session_hash or ""
        if newest.take(session, stamp):
            time.sleep(pause)
        if not newest.begins(session, stamp):
            dropped = newest.stamps.get(session) == stamp  # by Stop, not by a newer request
            stopped = SteerFrame((), (), True, False, message="Stopped.")
            yield only_status(view.status(stopped)) if dropped else nothing()
            return
        try:
            yield from answer(asked_for(filled(engine, form)), session, stamp)
        except SettingsError as problem:
            yield failed(str(problem)) if newest.shows(session, stamp) else nothing()
        except Exception:
            LOG.exception("steering failed")
            yield failed(view.BROKE)
        finally:
            newest.ended(session, stamp)

    return stream
