"""Scheduler: several sessions advance together, those of one key in one batch, and who waits for whom."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from steer_heal.config import DoseRequest, SettingsError, SteerRequest, build
from steer_heal.engine import Engine, vectors
from steer_heal.engine.preemptible import preemptible
from steer_heal.engine.requests import Request, Waiting
from steer_heal.engine.scheduler import AT_ONCE, PATIENT_AT_ONCE, Scheduler
from steer_heal.records import SteerFrame, Stopped
from tests import crowd, tiny
from tests.crowd import BAND, ids


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


PASSES = 6
OTHER = "liberty_over_custom"


class Extraction:
    """The extraction, a pass of which waits until `go` is set; what began, what ended and how."""

    def __init__(self) -> None:
        self.real, self.go, self.waits = vectors.extract, threading.Event(), threading.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.fails: Exception | None = None

    def __call__(
        self, lm: Any, trait: Any, contexts: Any, settings: Any, *, progress: Callable[[int, int], None]
    ) -> Any:
        self.begun.append(trait.name)
        try:
            for done in range(1, PASSES + 1):
                self.waits.set()
                assert self.go.wait(30)
                progress(done, PASSES)
            if self.fails:
                raise self.fails
        except Stopped:
            self.ended.append(f"{trait.name} stopped")
            raise
        self.ended.append(trait.name)
        return self.real(lm, trait, contexts[:4], settings)


@pytest.fixture
def extraction(monkeypatch):
    made = Extraction()
    monkeypatch.setattr(vectors, "extract", made)
    return made


@pytest.fixture
def engine(tmp_path, extraction):
    made = Engine(lm=tiny.language_model("llama"), runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb")
    yield made
    extraction.go.set()
    made.close()


def request(alpha: float = 1.0, n: int = 8, **changed: Any) -> SteerRequest:
    return crowd.request(alpha=alpha, n=n, greedy=True).model_copy(update=changed)


def until_base(frames: Iterator[SteerFrame]) -> SteerFrame:
    return next(frame for frame in frames if frame.base)


def test_base_has_its_first_token_before_the_vector_is_measured(engine, extraction):
    frames = engine.steer(request(), session="a")
    first = until_base(frames)
    assert extraction.ended == []
    assert not first.steered
    assert "Measuring the direction of Care" in first.message
    extraction.go.set()
    last = list(frames)[-1]
    assert last.done
    assert last.c_star is not None
    again = list(engine.steer(request(), session="a"))[-1]
    assert ids(last) == ids(again)


def test_the_seconds_of_an_answer_are_those_of_its_writing(engine, extraction, monkeypatch):
    late = SimpleNamespace(
        monotonic=lambda: time.monotonic() + 1000 * len(extraction.ended), perf_counter=time.perf_counter
    )
    for module in ("answer", "answer_batch"):
        monkeypatch.setattr(f"steer_heal.engine.{module}.time", late)
    extraction.go.set()
    last = list(engine.steer(request(), session="a"))[-1]
    assert extraction.ended
    assert last.seconds < 1000


def test_frames_say_how_far_the_measurement_is_and_neither_answer_shrinks(engine, extraction):
    extraction.go.set()
    told = list(engine.steer(request(n=40), session="a"))
    said = [frame.message for frame in told if not frame.steered]
    assert any(f"of {PASSES} prompts" in text for text in said)
    assert any("Measuring c* of Care" in text for text in said)
    for kind in ("base", "steered"):
        lengths = [len(getattr(frame, kind)) for frame in told]
        assert lengths == sorted(lengths)
    assert told[-1].done


def test_one_that_is_replaced_leaves_its_measurement_to_the_newer(engine, extraction):
    older = engine.steer(request(alpha=1.0), session="a")
    until_base(older)
    newer = engine.steer(request(alpha=2.0, band=(0.5, 1.0)), session="a")
    threading.Timer(0.05, extraction.go.set).start()
    assert list(newer)[-1].done
    assert list(older)[-1].superseded
    assert extraction.begun == extraction.ended == ["care_over_authority"]


def test_stop_ends_the_request_and_the_next_goes_on_where_it_was(engine, extraction):
    frames = engine.steer(request(), session="a")
    until_base(frames)
    engine.stop("a")
    extraction.go.set()
    last = list(frames)[-1]
    assert (last.done, last.message, last.steered) == (True, "Stopped.", ())
    assert extraction.ended == []
    assert list(engine.steer(request(), session="a"))[-1].done
    assert extraction.begun == extraction.ended == ["care_over_authority"]


def test_what_nobody_waits_for_is_forgotten_when_another_is_measured(engine, extraction):
    frames = engine.steer(request(), session="a")
    until_base(frames)
    assert extraction.waits.wait(30)
    engine.stop("a")
    extraction.go.set()
    list(frames)
    assert list(engine.steer(request(trait=OTHER), session="a"))[-1].done
    assert extraction.ended == ["care_over_authority stopped", OTHER]


def test_what_cannot_be_measured_ends_all_who_wait_for_it_and_the_engine_goes_on(engine, extraction):
    extraction.fails = SettingsError("The steering vector is zero: use personas that differ.")
    frames = engine.steer(request(), session="a")
    assert until_base(frames).base
    extraction.go.set()
    with pytest.raises(SettingsError, match="personas that differ"):
        list(frames)
    extraction.fails = None
    assert list(engine.steer(request(), session="a"))[-1].done


def test_a_sweep_is_stopped_while_its_vector_is_measured(engine, extraction):
    asked = build(DoseRequest, alphas=(0.0,), band=BAND, prompts=("A man lies.",))
    sweep = engine.dose(asked, session="a")
    next(sweep)
    assert extraction.waits.wait(30)
    engine.stop("a")
    extraction.go.set()
    assert all(item.share < 1.0 for item in sweep)
    assert extraction.ended == ["care_over_authority stopped"]


def test_closing_the_engine_ends_what_is_measured(engine, extraction):
    frames = engine.steer(request(), session="a")
    until_base(frames)
    engine.stop("a")
    extraction.go.set()
    list(frames)
    engine.close()
    assert extraction.ended == ["care_over_authority stopped"]
    assert not [thread for thread in threading.enumerate() if thread.name == "slices"]
