"""What a request has while its vector is being measured: base at once, progress, and that nothing is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from steer_heal.config import DoseRequest, SettingsError, SteerRequest, build
from steer_heal.engine import Engine, vectors
from steer_heal.records import SteerFrame, Stopped
from tests import crowd, tiny
from tests.crowd import BAND, ids

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
