"""Several sessions, one model: work is cut into steps, and one thread does a step of each in turn."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

AT_ONCE = 4
"""Pieces of work that advance together; what comes later waits until one of them has ended."""

PATIENCE = 6
"""Steps that work in a hurry gets for one step of patient work, while there is both."""

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Waiting:
    """Comes instead of an item while `ahead` other pieces of work are in front."""

    ahead: int


class _End:
    """The last item of a piece of work, with what it raised."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@dataclass(eq=False)
class Ticket(Generic[T]):
    """A piece of work: its steps, what they gave, and whether it should end."""

    session: str
    steps: Callable[[Ticket[T]], Iterator[T]]
    out: queue.SimpleQueue[T | _End] = field(default_factory=queue.SimpleQueue)
    patient: bool = False
    passed: int = 0
    superseded: bool = False
    stopped: bool = False
    running: Iterator[T] | None = None

    def over(self) -> bool:
        """Whether the work should end at its next step."""
        return self.stopped or self.superseded


class Turns:
    """Runs pieces of work on one thread, a step of each in turn, the oldest first.

    A session's newer work replaces its older: that one sees `superseded` at its next step. Other sessions are
    never touched. What the steps raise is raised to whoever reads them.
    """

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._active: deque[Ticket] = deque()
        self._tickets: set[Ticket] = set()
        self._newest: dict[str, Ticket] = {}
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def run(
        self, session: str, steps: Callable[[Ticket[T]], Iterator[T]], *, patient: bool = False
    ) -> Iterator[T | Waiting]:
        """The items of `steps(ticket)`, as they come, with `Waiting` before the first where it has to wait.

        `patient` work lets other work pass, up to `PATIENCE` steps for one of its own. Work begins at the
        first `next`. Closing the iterator ends the work at its next step.
        """
        ticket: Ticket[T] = Ticket(session, steps, patient=patient)
        self._admit(ticket)
        try:
            while True:
                try:
                    item = ticket.out.get(timeout=_POLL_S)
                except queue.Empty:
                    if ahead := self._ahead(ticket):
                        yield Waiting(ahead)
                    continue
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self._leave(ticket)

    def stop(self, session: str) -> None:
        """Ends the session's work at its next step."""
        with self._change:
            if ticket := self._newest.get(session):
                ticket.stopped = True

    def close(self) -> None:
        """Ends all work and the thread."""
        with self._change:
            self._closed = True
            for ticket in self._tickets:
                ticket.stopped = True
            self._change.notify_all()
        self._thread.join(timeout=30)

    def _admit(self, ticket: Ticket) -> None:
        with self._change:
            if older := self._newest.get(ticket.session):
                older.superseded = True
            self._newest[ticket.session] = ticket
            self._tickets.add(ticket)
            ticket.stopped = self._closed
            self._waiting.append(ticket)
            self._change.notify_all()

    def _leave(self, ticket: Ticket) -> None:
        with self._change:
            ticket.stopped = True
            self._tickets.discard(ticket)
            if self._newest.get(ticket.session) is ticket:
                del self._newest[ticket.session]

    def _ahead(self, ticket: Ticket) -> int:
        with self._change:
            return AT_ONCE + self._waiting.index(ticket) if ticket in self._waiting else 0

    def _next(self, last: Ticket | None) -> Ticket | None:
        """The work whose step is due, `last` going to the end of the line; None once closed and done."""
        with self._change:
            going = [] if last is None else [last]
            while True:
                while self._waiting and len(self._active) + len(going) < AT_ONCE:
                    self._active.append(self._waiting.popleft())
                self._active.extend(going)
                if self._active:
                    return self._due()
                if self._closed:
                    return None
                going = []
                self._change.wait()

    def _due(self) -> Ticket:
        """The first of the active; patient work is passed over while others are there."""
        for _ in range(len(self._active)):
            ticket = self._active.popleft()
            if not ticket.patient or ticket.passed >= PATIENCE or all(t.patient for t in self._active):
                ticket.passed = 0
                return ticket
            ticket.passed += 1
            self._active.append(ticket)
        return self._active.popleft()

    def _work(self) -> None:
        last: Ticket | None = None
        while (ticket := self._next(last)) is not None:
            last = None
            try:
                if ticket.running is None:
                    ticket.running = iter(ticket.steps(ticket))
                ticket.out.put(next(ticket.running))
                last = ticket
            except StopIteration:
                ticket.out.put(_End())
            except BaseException as error:  # noqa: BLE001 - raised to the reader by `run`
                ticket.out.put(_End(error))
