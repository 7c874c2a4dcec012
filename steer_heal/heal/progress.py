"""Progress out of a call that reports it by a callback, as items of a generator."""

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

from steer_heal.records import Stopped

T = TypeVar("T")
Tick = Callable[[int, int], None]
Emission = tuple[str, int | None, dict[str, Any]]
Stage = Generator[Emission, None, T]

PROGRESS_S = 0.5


def live(work: Callable[[Tick], T], stop: Callable[[], bool]) -> Generator[tuple[int, int], None, T]:
    """Runs `work(tick)` in a thread and yields each (done, total) it ticks; returns what it returned.

    A tick raises `Stopped` inside the work once `stop()` says so or the generator was closed; errors of the
    work are raised here. No thread is left behind.
    """
    items: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
    closed = Event()

    def tick(done: int, total: int) -> None:
        if closed.is_set() or stop():
            raise Stopped
        items.put((done, total))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="heal") as pool:
        future = pool.submit(work, tick)
        future.add_done_callback(lambda _: items.put(None))
        try:
            while (item := items.get()) is not None:
                yield item
        finally:
            closed.set()
    return future.result()


def emitting(stage: str, round_: int, work: Callable[[Tick], T], stop: Callable[[], bool]) -> Stage[T]:
    """The work's result; its `progress` is emitted at most every `PROGRESS_S` seconds. Raises `Stopped`."""
    began = told = time.monotonic()
    working = live(work, stop)
    while True:
        try:
            done, total = next(working)
        except StopIteration as end:
            if stop():
                raise Stopped from None
            return end.value
        now = time.monotonic()
        if now - told >= PROGRESS_S:
            told = now
            rate = done / (now - began)
            yield "progress", round_, {"stage": stage, "done": done, "total": total, "rate": rate}
