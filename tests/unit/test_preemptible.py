"""Slices: the work pauses from deep inside, its caller goes on, and closing ends it.

What it raises: `test_measuring`.
"""

import threading
from collections.abc import Callable, Iterator

from steer_heal.engine.preemptible import preemptible
from steer_heal.records import Stopped


def test_the_work_runs_only_while_its_caller_waits() -> None:
    told: list[str] = []

    def work(pause: Callable[[], None]) -> Iterator[int]:
        for name in "ab":
            told.append(f"work {name}")
            pause()
        yield 1

    for _ in preemptible(work):
        told.append("caller")
    assert told == ["work a", "caller", "work b", "caller", "caller"]


def test_closing_ends_the_work_at_its_pause_and_leaves_no_thread() -> None:
    ended: list[str] = []

    def endless(pause: Callable[[], None]) -> Iterator[int]:
        try:
            while True:
                pause()
        except Stopped:
            ended.append("stopped")
            raise
        yield 0

    before = threading.active_count()
    slices = preemptible(endless)
    assert [next(slices), next(slices)] == [None, None]
    slices.close()
    assert ended == ["stopped"]
    assert threading.active_count() == before
