"""Requests to the model: what each asks, what its reader is given, and what can be done together."""

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
class Request(Generic[T]):
    """What a session asked for, the items that its reader gets, and whether the work should end."""

    session: str
    asked: Any = None
    work: SharedWork[T] | None = None
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


class SharedWork(Protocol[T]):
    """Work that requests of one key can do together."""

    def key(self, asked: Any) -> Hashable:
        """What requests must share to begin together; asked when the request comes. Raises for a bad one."""
        ...

    def room(self, asked: Sequence[Any]) -> int:
        """How many of these, from the first on, may begin together; at least 1."""
        ...

    def steps(self, requests: list[Request[T]]) -> Iterator[None]:
        """Works for all, an item a step; gives each request its own items, and ends it when it is done."""
        ...


class SoloWork:
    """Work for one request: the items of `steps(request)`."""

    def __init__(self, steps: Callable[[Request], Iterator[Any]]) -> None:
        self._steps = steps

    def key(self, asked: Any) -> Hashable:
        return id(self)

    def room(self, asked: Sequence[Any]) -> int:
        return 1

    def steps(self, requests: list[Request]) -> Iterator[None]:
        for item in self._steps(requests[0]):
            requests[0].tell(item)
            yield
