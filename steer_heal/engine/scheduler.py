"""Several sessions, one model: work is cut into steps, and one thread does a step of each in turn.

Requests that can be worked on together begin together, so that fifty people wait about as long as one.
Source: batches made up anew as requests come and go (Yu et al., 2022, Orca).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from steer_heal.engine.requests import Alone, End, Party, Ticket, Waiting

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
    """What a few tickets, or one, have in common while they are worked on."""

    tickets: list[Ticket]
    steps: Iterator[None]
    patient: bool
    brief: bool
    passed: int = 0

    def end(self, error: BaseException | None = None) -> None:
        for ticket in self.tickets:
            ticket.end(error)


class Turns:
    """Runs pieces of work on one thread, a step of each in turn.

    A session's newer request replaces its older: that one sees `superseded` at its next step. Other sessions
    are never touched. What the steps raise is raised to whoever reads them.
    """

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []
        self._active: deque[_Work] = deque()
        self._tickets: set[Ticket] = set()
        self._newest: dict[str, Ticket] = {}
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def run(
        self,
        session: str,
        steps: Callable[[Ticket[T]], Iterator[T]],
        *,
        patient: bool = False,
        brief: bool = False,
    ) -> Iterator[T | Waiting]:
        """The items of `steps(ticket)`, as they come, with `Waiting` before the first where it has to wait.

        `patient` work lets other work pass, up to `PATIENCE` steps for one of its own; `brief` work, of a
        step or two, takes nobody's place. Work begins at the first `next`. Closing the iterator ends the work
        at its next step.
        """
        ticket: Ticket[T] = Ticket(session, party=Alone(steps), patient=patient, brief=brief)
        yield from self._follow(ticket, every=True)

    def join(self, session: str, request: Any, party: Party[T]) -> Iterator[T | Waiting]:
        """The same for a request that is worked on together with others of its key.

        An item holds all that was told before: a reader that is slow gets the newest only.
        """
        ticket: Ticket[T] = Ticket(session, request, party, (id(party), party.key(request)))
        yield from self._follow(ticket, every=False)

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

    def _follow(self, ticket: Ticket[T], *, every: bool) -> Iterator[T | Waiting]:
        self._admit(ticket)
        told = 0
        try:
            while True:
                try:
                    item = ticket.out.get(timeout=_POLL_S)
                except queue.Empty:
                    if (ahead := self._ahead(ticket)) not in (0, told):
                        told = ahead
                        yield Waiting(ahead)
                    continue
                while not every and not isinstance(item, End) and not ticket.out.empty():
                    later = ticket.out.get()
                    if isinstance(later, End):
                        ticket.out.put(later)
                        break
                    item = later
                if isinstance(item, End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self._leave(ticket)

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
        """How many requests are worked on, and how many wait that begin before this one does."""
        with self._change:
            if ticket not in self._waiting:
                return 0
            line = [one for one in self._waiting if one.patient == ticket.patient]
            before = line[: line.index(ticket)]
            others = sum(one.group is None or one.group != ticket.group for one in before)
            earlier = len(before) - others
            if earlier and ticket.party is not None:
                earlier -= earlier % ticket.party.room([one.request for one in (*before, ticket)])
            served = [work.tickets for work in self._active if work.patient == ticket.patient]
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
            assert first.party is not None
            same = [first]
            if first.group is not None and not first.over():
                same = [one for one in self._waiting if one.group == first.group]
                same = same[: first.party.room([one.request for one in same])]
            self._waiting = [one for one in self._waiting if one not in same]
            fresh.append(_Work(same, first.party.steps(same), first.patient, first.brief))
        self._active.extendleft(reversed(fresh))

    def _may_begin(self, ticket: Ticket, fresh: list[_Work]) -> bool:
        if ticket.over() or ticket.brief:
            return True
        others = [work for work in (*self._active, *fresh) if not work.brief]
        busy = sum(work.patient == ticket.patient for work in others)
        if ticket.patient:
            return busy < PATIENT_AT_ONCE
        return busy < AT_ONCE or time.monotonic() - ticket.since > SOON_S

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
