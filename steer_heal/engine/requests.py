"""Requests on their way through the model: what each asks, what it is told, and what can be done together."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waiting:
    """Comes instead of an item while `ahead` other requests are in front; again when that number changes."""

    ahead: int


class End:
    """The last item of a request, with what its work raised."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


@dataclass(eq=False)
class Ticket(Generic[T]):
    """A request: what it asks, what it has been told, and whether its work should end."""

    session: str
    request: Any = None
    party: Party[T] | None = None
    group: Hashable = None
    patient: bool = False
    brief: bool = False
    out: queue.SimpleQueue[T | End] = field(default_factory=queue.SimpleQueue)
    since: float = field(default_factory=time.monotonic)
    superseded: bool = False
    stopped: bool = False
    ended: bool = False

    def over(self) -> bool:
        """Whether the work should end at its next step."""
        return self.stopped or self.superseded

    def tell(self, item: T) -> None:
        """Gives the reader an item."""
        self.out.put(item)

    def end(self, error: BaseException | None = None) -> None:
        """Tells the reader that nothing more comes, and raises there what went wrong."""
        if not self.ended:
            self.ended = True
            self.out.put(End(error))


class Party(Protocol[T]):
    """Work that requests of one key can do together."""

    def key(self, request: Any) -> Hashable:
        """What requests must share to begin together; asked when the request comes. Raises for a bad one."""
        ...

    def room(self, requests: Sequence[Any]) -> int:
        """How many of these, from the first on, may begin together; at least 1."""
        ...

    def steps(self, tickets: list[Ticket[T]]) -> Iterator[None]:
        """Works for all, an item a step; tells each ticket what is its own, and ends it when it is done."""
        ...


class Alone:
    """A party of one: the items of `steps(ticket)`."""

    def __init__(self, steps: Callable[[Ticket], Iterator[Any]]) -> None:
        self._steps = steps

    def key(self, request: Any) -> Hashable:
        return id(self)

    def room(self, requests: Sequence[Any]) -> int:
        return 1

    def steps(self, tickets: list[Ticket]) -> Iterator[None]:
        for item in self._steps(tickets[0]):
            tickets[0].tell(item)
            yield
