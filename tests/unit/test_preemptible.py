"""Slices: the work pauses from deep inside, its caller goes on, and closing ends it.

What it raises: `test_measuring`.
"""

from collections.abc import Callable, Iterator

from steer_heal.engine.preemptible import preemptible


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
