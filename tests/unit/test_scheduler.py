"""Turns: several sessions advance together, a newer request replaces only its own session's older one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from steer_heal.engine.requests import Ticket, Waiting
from steer_heal.engine.scheduler import AT_ONCE, PATIENT_AT_ONCE, Turns


@pytest.fixture
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    made.close()


def endless(ticket: Ticket[int]) -> Iterator[int]:
    number = 0
    while not ticket.over():
        time.sleep(0.001)
        yield (number := number + 1)


def test_items_come_in_order_and_the_work_ends(turns: Turns) -> None:
    assert [
        item for item in turns.run("a", lambda _: iter(range(5))) if not isinstance(item, Waiting)
    ] == list(range(5))


def test_what_a_step_raises_reaches_the_reader_and_the_thread_goes_on(turns: Turns) -> None:
    def fails(_: Ticket[int]) -> Iterator[int]:
        yield 1
        raise ValueError("what happened")

    reader = turns.run("a", fails)
    assert next(reader) == 1
    with pytest.raises(ValueError, match="what happened"):
        list(reader)
    assert list(turns.run("a", lambda _: iter([7]))) == [7]


def test_a_newer_request_replaces_the_older_of_its_session_only(turns: Turns) -> None:
    tickets: dict[str, Ticket[int]] = {}

    def work(name: str) -> Iterator[int | Waiting]:
        def steps(ticket: Ticket[int]) -> Iterator[int]:
            tickets[name] = ticket
            return endless(ticket)

        return turns.run(name.rstrip("0123456789"), steps)

    older, other = work("a1"), work("b1")
    assert next(older) == 1
    assert next(other) == 1
    newer = work("a2")
    assert next(newer) == 1
    list(older)
    assert (tickets["a1"].superseded, tickets["b1"].over(), tickets["a2"].over()) == (True, False, False)
    other.close()  # type: ignore[attr-defined]
    newer.close()  # type: ignore[attr-defined]


def test_stop_ends_the_sessions_work_without_superseding_it(turns: Turns) -> None:
    seen: list[Ticket[int]] = []

    def steps(ticket: Ticket[int]) -> Iterator[int]:
        seen.append(ticket)
        return endless(ticket)

    reader = turns.run("a", steps)
    next(reader)
    turns.stop("nobody")
    turns.stop("a")
    list(reader)
    assert (seen[0].stopped, seen[0].superseded) == (True, False)


def test_sessions_advance_together_step_by_step(turns: Turns) -> None:
    order: list[str] = []
    go = threading.Event()

    def steps(name: str) -> Iterator[str]:
        go.wait(10)
        for _ in range(3):
            order.append(name)
            yield name

    readers = [turns.run(name, lambda _, name=name: steps(name)) for name in "abc"]
    threads = [threading.Thread(target=list, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    while len(turns._newest) < 3:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert sorted(order[3:6]) == ["a", "b", "c"]


def test_who_comes_late_is_told_how_many_are_ahead_and_is_served_when_one_ends(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steer_heal.engine.scheduler.SOON_S", 60.0)
    readers = [turns.run(f"s{index}", endless) for index in range(AT_ONCE)]
    for reader in readers:
        assert next(reader) == 1
    late = turns.run("late", endless)
    assert next(late) == Waiting(AT_ONCE)
    readers[2].close()  # type: ignore[attr-defined]
    assert next(item for item in late if not isinstance(item, Waiting)) == 1
    late.close()  # type: ignore[attr-defined]


def test_a_reader_that_goes_away_ends_its_work(turns: Turns) -> None:
    seen: list[Ticket[int]] = []

    def steps(ticket: Ticket[int]) -> Iterator[int]:
        seen.append(ticket)
        return endless(ticket)

    reader = turns.run("a", steps)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert seen[0].over()
    assert turns._newest == {}


def test_closing_ends_everything() -> None:
    turns = Turns()
    reader = turns.run("a", endless)
    next(reader)
    turns.close()
    assert all(isinstance(item, int) for item in reader)
    assert not turns._thread.is_alive()


class Counting:
    """A party whose tickets are told 1, 2, 3 ... as far as each asks, all in one step."""

    def __init__(self, go: threading.Event) -> None:
        self.go, self.begun = go, list[list[int]]()

    def key(self, request: int) -> str:
        if request < 0:
            raise ValueError("below 0")
        return "counts"

    def room(self, requests: object) -> int:
        return 3

    def steps(self, tickets: list[Ticket[int]]) -> Iterator[None]:
        self.begun.append([ticket.request for ticket in tickets])
        self.go.wait(10)
        for number in range(1, 1 + max(ticket.request for ticket in tickets)):
            for ticket in tickets:
                if number <= ticket.request:
                    ticket.tell(number)
                if number == ticket.request:
                    ticket.end()
            yield


def test_requests_of_one_key_begin_together_as_many_as_there_is_room_for(turns: Turns) -> None:
    go, heard = threading.Event(), dict[int, list[int | Waiting]]()
    party = Counting(go)

    def listen(number: int) -> None:
        heard[number] = list(turns.join(f"s{number}", number, party))

    threads = [threading.Thread(target=listen, args=(number,)) for number in (5, 1, 2, 3, 4)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(turns._tickets) < number + 1 or not party.begun:
            time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert party.begun == [[5], [1, 2, 3], [4]]
    assert {number: items[-1] for number, items in heard.items()} == {n: n for n in range(1, 6)}


def test_a_slow_reader_gets_the_newest_only_and_the_end(turns: Turns) -> None:
    go = threading.Event()
    go.set()
    reader = turns.join("a", 400, Counting(go))
    first = next(reader)
    while not next(iter(turns._tickets)).ended:
        time.sleep(0.001)
    rest = list(reader)
    assert isinstance(first, int)
    assert rest == ([] if first == 400 else [400])


def test_a_request_that_has_no_key_is_refused_before_it_waits(turns: Turns) -> None:
    with pytest.raises(ValueError, match="below 0"):
        next(turns.join("a", -1, Counting(threading.Event())))
    assert not turns._tickets


def test_who_has_waited_long_begins_whatever_is_worked_on(turns: Turns) -> None:
    readers = [turns.run(f"s{index}", endless) for index in range(AT_ONCE)]
    for reader in readers:
        assert next(reader) == 1
    late = turns.run("late", endless)
    assert 1 in [next(late) for _ in range(30)]
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]


def test_patient_work_waits_for_patient_work_and_never_takes_the_place_of_other(turns: Turns) -> None:
    sweeps = [turns.run(f"p{index}", endless, patient=True) for index in range(PATIENT_AT_ONCE)]
    for sweep in sweeps:
        assert next(sweep) == 1
    late = turns.run("late", endless, patient=True)
    assert next(late) == Waiting(PATIENT_AT_ONCE)
    assert [next(turns.run(f"s{index}", endless)) for index in range(3)] == [1, 1, 1]
    for reader in (*sweeps, late):
        reader.close()  # type: ignore[attr-defined]


def test_brief_work_begins_whatever_is_worked_on_and_takes_nobodys_place(turns: Turns) -> None:
    readers = [turns.run(f"s{index}", endless) for index in range(AT_ONCE - 1)]
    readers += [turns.run(f"p{index}", endless, patient=True) for index in range(PATIENT_AT_ONCE)]
    readers += [turns.run(f"b{index}", endless, patient=True, brief=True) for index in range(5)]
    readers.append(turns.run("another", endless))
    assert [next(reader) for reader in readers] == [1] * len(readers)
    for reader in readers:
        reader.close()  # type: ignore[attr-defined]
