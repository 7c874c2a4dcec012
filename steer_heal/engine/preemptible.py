"""Long work cut into slices from within: wherever it pauses, its caller goes on first."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from steer_heal.engine.requests import End, Request
from steer_heal.records import Stopped

T = TypeVar("T")
Pause = Callable[[], None]


class _Worker(Generic[T]):
    """The work on a thread of its own, which runs only while the caller waits for its next item."""

    def __init__(self, work: Callable[[Pause], Iterator[T]]) -> None:
        self._work = work
        self._go, self._out = threading.Semaphore(0), queue.SimpleQueue[T | End | None]()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="slices", daemon=True)
        self._thread.start()

    def next(self) -> T | End | None:
        self._go.release()
        return self._out.get()

    def close(self) -> None:
        """Let the work end, by `Stopped` out of its next pause, and wait for it; not where Python itself is
        ending, in which no thread goes on."""
        self._closed = True
        self._go.release()
        if not sys.is_finalizing():
            self._thread.join()

    def _hand(self, item: T | None) -> None:
        self._out.put(item)
        self._go.acquire()
        if self._closed:
            raise Stopped

    def _run(self) -> None:
        self._go.acquire()
        error = None
        try:
            if not self._closed:
                for item in self._work(lambda: self._hand(None)):
                    self._hand(item)
        except BaseException as raised:  # noqa: BLE001 - raised to the caller by `preemptible`
            error = raised
        self._out.put(End(error))


def preemptible(work: Callable[[Pause], Iterator[T]]) -> Iterator[T | None]:
    """The items of `work(pause)`, and None wherever it calls `pause()`, also from deep inside an item.

    The work and its caller never run at once. Closing the iterator raises `Stopped` out of the work's pause.
    """
    lane = _Worker(work)
    try:
        while not isinstance(item := lane.next(), End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        lane.close()


def while_wanted(
    request: Request[Any], work: Callable[[Callable[[], bool]], Iterator[T]]
) -> Iterator[T | None]:
    """`preemptible`, but the work is given a `stop` that pauses and then says whether the request is over."""

    def paused(pause: Pause) -> Iterator[T]:
        def stop() -> bool:
            pause()
            return request.over()

        return work(stop)

    return preemptible(paused)
