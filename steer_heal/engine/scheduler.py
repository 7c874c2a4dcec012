"""Several sessions, one model: work is cut into steps, and one thread does a step of each in turn.

Requests that can be worked on together begin together, so that fifty people wait about as long as one.
Source: batches made up anew as requests come and go (Yu et al., 2022, Orca).
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from steer_heal.engine.requests import End, Request, SharedWork, SoloWork, Waiting

T = TypeVar("T")

AT_ONCE = 4
"""Pieces of work in a hurry that advance in turn; who comes later waits, and begins together with others."""

SOON_S = 0.5
"""Who has waited so long begins, whatever is being worked on."""

PATIENT_AT_ONCE = 2
"""Pieces of patient work that advance in turn."""

PATIENCE = 6
"""Steps that work in a hurry gets for one step of patient work, while there is both."""

_POLL_S = 0.2


@dataclass(eq=False)
class _Work:
    """What a few requests, or one, have in common while they are worked on."""

    requests: list[Request]
    steps: Iterator[None]
    patient: bool
    brief: bool
    passed: int = 0

    def end(self, error: BaseException | None = None) -> None:
        for request in self.requests:
            request.end(error)


class Scheduler:
    """Runs pieces of work on one thread, a step of each in turn.

    A session's newer request replaces its older: that one sees `superseded` at its next step. Other sessions
    are never touched. What the steps raise is raised to whoever reads them.
    """

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._active: deque[_Work] = deque()
        self._requests: set[Request] = set()
        self._newest: dict[str, Request] = {}
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def run(
        self,
        session: str,
        steps: Callable[[Request[T]], Iterator[T]],
        *,
        patient: bool = False,
        brief: bool = False,
    ) -> Iterator[T | Waiting]:
        """The items of `steps(request)`, as they come, with `Waiting` before the first where it has to wait.

        `patient` work lets other work pass, up to `PATIENCE` steps for one of its own; `brief` work, of a
        step or two, takes nobody's place. Work begins at the first `next`. Closing the iterator ends the work
        at its next step.
        """
        request: Request[T] = Request(session, work=SoloWork(steps), patient=patient, brief=brief)
        yield from self._follow(request, every=True)

    def join(self, session: str, asked: Any, work: SharedWork[T]) -> Iterator[T | Waiting]:
        """The same for a request that is worked on together with others of its key.

        An item holds all that was told before: a reader that is slow gets the newest only.
        """
        request: Request[T] = Request(session, asked, work, (id(work), work.key(asked)))
        yield from self._follow(request, every=False)

    def stop(self, session: str) -> None:
        """Ends the session's work at its next step."""
        with self._change:
            if request := self._newest.get(session):
                request.stopped = True

    def has(self, requests: int, timeout_s: float = 0.0) -> bool:
        """Whether so many requests are here, in the line or worked on; waits for them for some time."""
        with self._change:
            return self._change.wait_for(lambda: len(self._requests) >= requests, timeout_s)

    def close(self) -> None:
        """Ends all work and the thread."""
        with self._change:
            self._closed = True
            for request in self._requests:
                request.stopped = True
            self._change.notify_all()
        self._thread.join(timeout=30)

    def _follow(self, request: Request[T], *, every: bool) -> Iterator[T | Waiting]:
        self._admit(request)
        told = 0
        try:
            while True:
                try:
                    item = request.out.get(timeout=_POLL_S)
                except queue.Empty:
                    if (ahead := self._ahead(request)) not in (0, told):
                        told = ahead
                        yield Waiting(ahead)
                    continue
                while not every and not isinstance(item, End) and not request.out.empty():
                    later = request.out.get()
                    if isinstance(later, End):
                        request.out.put(later)
                        break
                    item = later
                if isinstance(item, End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self._leave(request)

    def _admit(self, request: Request) -> None:
        with self._change:
            if older := self._newest.get(request.session):
                older.superseded = True
            self._newest[request.session] = request
            self._requests.add(request)
            request.stopped = self._closed
            self._waiting.append(request)
            self._change.notify_all()

    def _leave(self, request: Request) -> None:
        with self._change:
            request.stopped = True
            self._requests.discard(request)
            if self._newest.get(request.session) is request:
                del self._newest[request.session]

    def _ahead(self, request: Request) -> int:
        """How many requests are worked on, and how many wait that begin before this one does."""
        with self._change:
            if request not in self._waiting:
                return 0
            line = [one for one in self._waiting if one.patient == request.patient]
            before = line[: line.index(request)]
            others = sum(one.group is None or one.group != request.group for one in before)
            earlier = len(before) - others
            if earlier and request.work is not None:
                earlier -= earlier % request.work.room([one.asked for one in (*before, request)])
            served = [work.requests for work in self._active if work.patient == request.patient]
            return others + earlier + sum(not one.over() and not one.ended for some in served for one in some)

    def _next(self) -> _Work | None:
        """The work whose step is due; None once closed and done."""
        with self._change:
            while True:
                self._begin()
                if self._active:
                    return self._due()
                if self._closed:
                    return None
                self._change.wait()

    def _begin(self) -> None:
        """Takes from the line who may begin, each with those that can be worked on with it; they go first."""
        fresh: list[_Work] = []
        while (
            first := next((one for one in self._waiting if self._may_begin(one, fresh)), None)
        ) is not None:
            assert first.work is not None
            same = [first]
            if first.group is not None and not first.over():
                same = [one for one in self._waiting if one.group == first.group]
                same = same[: first.work.room([one.asked for one in same])]
            self._waiting = [one for one in self._waiting if one not in same]
            fresh.append(_Work(same, first.work.steps(same), first.patient, first.brief))
        self._active.extendleft(reversed(fresh))

    def _may_begin(self, request: Request, fresh: list[_Work]) -> bool:
        if request.over() or request.brief:
            return True
        others = [work for work in (*self._active, *fresh) if not work.brief]
        busy = sum(work.patient == request.patient for work in others)
        if request.patient:
            return busy < PATIENT_AT_ONCE
        return busy < AT_ONCE or time.monotonic() - request.since > SOON_S

    def _due(self) -> _Work:
        """The first of the active; patient work is passed over while others are there."""
        work = self._active[0]
        while work.patient and work.passed < PATIENCE and not all(one.patient for one in self._active):
            work.passed += 1
            self._active.rotate(-1)
            work = self._active[0]
        self._active.rotate(-1)
        work.passed = 0
        return work

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                next(work.steps)
                continue
            except StopIteration:
                work.end()
            except BaseException as error:  # noqa: BLE001 - raised to the reader by `run`
                work.end(error)
            with self._change:
                self._active.remove(work)
