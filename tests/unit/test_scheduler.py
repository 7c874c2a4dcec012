"""Scheduler: several sessions advance together, those of one key in one batch, and who waits for whom."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from steer_heal.engine.preemptible import preemptible
from steer_heal.engine.requests import Request, Waiting
from steer_heal.engine.scheduler import AT_ONCE, PATIENT_AT_ONCE, Scheduler


@pytest.fixture
def scheduler():
    made = Scheduler()
    yield made
    made.close()


SEEN: dict[str, Request[int]] = {}
"""By its session the request that endless work was last begun for."""


def endless(request: Request[int]) -> Iterator[int]:
    SEEN[request.session] = request
    number = 0
    while not request.over():
        time.sleep(0.001)
        yield (number := number + 1)


def test_what_a_step_raises_reaches_the_reader_and_the_thread_goes_on(scheduler):
    def fails(_: Request[int]) -> Iterator[int]:
        yield 1
        raise ValueError("what happened")

    reader = scheduler.run("a", fails)
    assert next(reader) == 1
    with pytest.raises(ValueError, match="what happened"):
        list(reader)
    assert list(scheduler.run("a", lambda _: iter([7]))) == [7]


def test_sessions_advance_together_step_by_step(scheduler):
    order: list[str] = []
    go = threading.Event()

    def steps(name: str) -> Iterator[str]:
        go.wait(10)
        for _ in range(3):
            order.append(name)
            yield name

    readers = [scheduler.run(name, lambda _, name=name: steps(name)) for name in "abc"]
    threads = [threading.Thread(target=list, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    assert scheduler.has(3, timeout_s=10.0)
    go.set()
    for thread in threads:
        thread.join(10)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:6]) == ["a", "b", "c"]


def test_who_comes_late_is_told_how_many_are_ahead_and_is_served_when_one_ends(scheduler, monkeypatch):
    monkeypatch.setattr("steer_heal.engine.scheduler.SOON_S", 60.0)
    readers = [scheduler.run(f"s{index}", endless) for index in range(AT_ONCE)]
    for reader in readers:
        assert next(reader) == 1
    late = scheduler.run("late", endless)
    assert next(late) == Waiting(AT_ONCE)
    readers[2].close()
    assert next(item for item in late if not isinstance(item, Waiting)) == 1


def test_a_reader_that_goes_away_ends_its_work(scheduler):
    reader = scheduler.run("a", endless)
    next(reader)
    reader.close()
    assert SEEN["a"].over()
    assert not scheduler.has(1)


def test_closing_ends_everything():
    before = set(threading.enumerate())
    scheduler = Scheduler()
    reader = scheduler.run("a", endless)
    next(reader)
    scheduler.close()
    assert all(isinstance(item, int) for item in reader)
    assert set(threading.enumerate()) <= before


class Counting:
    """Work whose requests are told 1, 2, 3 ... as far as each asks, all in one step."""

    def __init__(self, go: threading.Event) -> None:
        self.go, self.begun = go, list[list[int]]()
        self.working, self.done = threading.Event(), threading.Event()

    def key(self, asked: int) -> str:
        return "counts"

    def room(self, asked: object) -> int:
        return 3

    def steps(self, requests: list[Request[int]]) -> Iterator[None]:
        self.begun.append([request.asked for request in requests])
        self.working.set()
        self.go.wait(10)
        for number in range(1, 1 + max(request.asked for request in requests)):
            for request in requests:
                if number <= request.asked:
                    request.tell(number)
                if number == request.asked:
                    request.end()
            yield
        self.done.set()


def test_requests_of_one_key_begin_together_as_many_as_there_is_room_for(scheduler):
    go, heard = threading.Event(), dict[int, list[int | Waiting]]()
    shared = Counting(go)

    def listen(number: int) -> None:
        heard[number] = list(scheduler.join(f"s{number}", number, shared))

    threads = [threading.Thread(target=listen, args=(number,)) for number in (5, 1, 2, 3, 4)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        assert scheduler.has(number, timeout_s=10.0)
        assert shared.working.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert shared.begun == [[5], [1, 2, 3], [4]]
    assert {number: items[-1] for number, items in heard.items()} == {n: n for n in range(1, 6)}


def test_a_slow_reader_gets_the_newest_only_and_the_end(scheduler):
    go = threading.Event()
    go.set()
    counting = Counting(go)
    reader = scheduler.join("a", 400, counting)
    first = next(reader)
    assert counting.done.wait(10)
    rest = list(reader)
    assert isinstance(first, int)
    assert rest == ([] if first == 400 else [400])


def test_who_has_waited_long_begins_whatever_is_worked_on(scheduler):
    readers = [scheduler.run(f"s{index}", endless) for index in range(AT_ONCE)]
    for reader in readers:
        assert next(reader) == 1
    late = scheduler.run("late", endless)
    assert 1 in [next(late) for _ in range(30)]


def test_patient_work_waits_for_patient_work_and_never_takes_the_place_of_other(scheduler):
    sweeps = [scheduler.run(f"p{index}", endless, patient=True) for index in range(PATIENT_AT_ONCE)]
    for sweep in sweeps:
        assert next(sweep) == 1
    late = scheduler.run("late", endless, patient=True)
    assert next(late) == Waiting(PATIENT_AT_ONCE)
    assert [next(scheduler.run(f"s{index}", endless)) for index in range(3)] == [1, 1, 1]


def test_brief_work_begins_whatever_is_worked_on_and_takes_nobodys_place(scheduler):
    readers = [scheduler.run(f"s{index}", endless) for index in range(AT_ONCE - 1)]
    readers += [scheduler.run(f"p{index}", endless, patient=True) for index in range(PATIENT_AT_ONCE)]
    readers += [scheduler.run(f"b{index}", endless, patient=True, brief=True) for index in range(5)]
    readers.append(scheduler.run("another", endless))
    assert [next(reader) for reader in readers] == [1] * len(readers)


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
