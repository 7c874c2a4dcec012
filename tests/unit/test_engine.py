"""The engine's face on a tiny model: pairs, sessions, caches, profiles, sweeps, and what it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from steer_heal import data, generate
from steer_heal.config import (
    DEFAULT_TRAIT,
    DoseRequest,
    SettingsError,
    build,
    heal_settings,
)
from steer_heal.engine import Engine, answer_batch
from steer_heal.engine.answer_batch import Answers
from steer_heal.engine.healed import HealedRounds
from steer_heal.engine.scheduler import AT_ONCE
from steer_heal.engine.vectors import Vectors
from steer_heal.records import Agreement
from tests import tiny
from tests.close import assert_near, log_p, model_rounding
from tests.crowd import BAND, Crowd, ids, request


def test_the_last_frame_is_done_and_frames_only_grow(engine):
    frames = list(engine.steer(request("grow"), session="a"))
    assert [frame.done for frame in frames] == [False] * (len(frames) - 1) + [True]
    lengths = [len(frame.steered) for frame in frames]
    assert lengths == sorted(lengths)
    assert frames[-1].base_done
    assert frames[-1].c_star is not None
    assert frames[-1].dose_nats == pytest.approx(engine.calibration("care_over_authority", BAND).kl_p95)
    assert not frames[-1].dose_beyond
    last = frames[-1]
    assert last.health.relevance is not None
    assert last.base_health.perplexity_ratio == pytest.approx(1.0)
    assert all(frame.health is None or frame.health.relevance is None for frame in frames[:-1])
    again = list(engine.steer(request("grow"), session="a"))[-1]
    assert_near(again.base_health.relevance, last.base_health.relevance, model_rounding(tiny.shared()), 1.0)


def test_beyond_what_was_measured_a_dose_costs_more_than_what_was(engine):
    """Doses of the other sign were not measured at all, until a sweep does."""
    known = engine.calibration("care_over_authority", BAND).history
    far = list(engine.steer(request("far", alpha=50.0, n=4), session="a"))[-1]
    assert far.dose_beyond
    assert far.dose_nats == pytest.approx(max(kl for _, kl in known))
    assert list(engine.steer(request("back", alpha=-0.5, n=4), session="a"))[-1].dose_nats is None
    asked = build(DoseRequest, alphas=(-1.0,), band=BAND, prompts=("A man lies.",))
    row = list(engine.dose(asked, session="a"))[-1].rows[0]
    assert row.profile.n_vignettes == 1
    back = list(engine.steer(request("back", alpha=-0.5, n=4), session="a"))[-1]
    assert (back.dose_nats, back.dose_beyond) == (pytest.approx((row.kl_p95 or 0.0) / 2), False)


def test_a_moved_slider_does_not_write_the_base_answer_again(engine, batches):
    first = list(engine.steer(request("again", alpha=1.0), session="a"))[-1]
    second = list(engine.steer(request("again", alpha=3.0), session="b"))
    assert batches == [2, 1]
    assert all(ids(frame)[0] == ids(first)[0] for frame in second if frame.steered)
    list(engine.steer(request("again", alpha=3.0, seed=1), session="a"))
    list(engine.steer(request("another", alpha=3.0), session="a"))
    assert batches == [2, 1, 2, 2]


def test_profile_is_of_the_prompt_and_base_does_not_move_with_alpha(engine):
    base, steered = engine.profile(request("A man takes the last seat."))
    again, further = engine.profile(request("A man takes the last seat.", alpha=8.0))
    assert_near(base.p, again.p, model_rounding(tiny.shared()), log_p(base))
    assert sum(base.p.values()) == pytest.approx(1.0)
    assert further.p != pytest.approx(steered.p, abs=1e-6)
    assert base.agreement.value is not None
    assert steered.agreement == Agreement(why="the vignettes have no labels")


def test_what_is_measured_of_an_effect_is_said_again_while_it_lasts_and_can_be_ended(engine, monkeypatch):
    monkeypatch.setattr("steer_heal.engine.engine.AGAIN_S", 0.0)
    nobody_elses = 0.0, 0.5  # another test's effect of the same would be kept, and not be measured again
    asked = build(DoseRequest, band=nobody_elses, controls=1)
    said = [next(running := engine.effect(asked, session="a"))]
    while said.count(said[-1]) < 3:
        said.append(next(running))
    engine.stop("a")
    assert all(isinstance(word, str) for word in (*said, *running))


def small_grid(**changed: Any) -> DoseRequest:
    return build(DoseRequest, alphas=(-1.0, 1.0), prompts=("A man lies.",), **changed)


def test_an_answer_is_written_whole_while_a_grid_is_measured(engine):
    grid = engine.grid(small_grid(), session="a")
    next(grid)
    answer = list(engine.steer(request("meanwhile", n=8), session="a"))
    assert answer[-1].done
    assert answer[-1].message != "Stopped."
    rest = list(grid)
    assert rest[-1].share == 1.0
    assert len(rest[-1].rows) == 12


def test_a_stopped_grid_keeps_its_cells_and_never_reaches_share_1(engine):
    grid = engine.grid(small_grid(), session="a")
    found: list[Any] = []
    while not found:
        found = next(grid).rows
    engine.stop("a")
    rest = list(grid)
    assert all(item.share < 1.0 for item in rest)
    assert len(rest[-1].rows if rest else found) < 12


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"trait": "nonsense"}, "nonsense"),
        ({"band": (0.51, 0.52)}, "band"),
        ({"prompt": "long " * 1599}, "tokens"),
    ],
)
def test_bad_requests_are_one_sentence_and_the_engine_goes_on(engine, change, match):
    asked = request().model_copy(update=change)
    with pytest.raises(SettingsError, match=match):
        list(engine.steer(asked, session="a"))
    with pytest.raises(SettingsError, match=match):
        engine.profile(asked)
    assert list(engine.steer(request("goes on"), session="a"))[-1].done


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"model": "no such model"}, "no such model"),
        ({"evaluate": {"vignettes": "/no/such.jsonl"}}, "copy it there"),
        ({"evaluate": {"vignettes": "no/such.jsonl"}}, "such.jsonl"),
        ({"model": "tiny-gemma3", "band": (0.51, 0.52)}, "band"),
    ],
)
def test_a_run_that_cannot_work_is_not_launched(engine, wrong, match):
    with pytest.raises(SettingsError, match=match):
        engine.launch(heal_settings(**{"model": "demo", **wrong}))
    assert all(run.is_example for run in engine.runs.rows())


def test_replies_that_a_trait_does_not_have_launch_nothing(engine, monkeypatch):
    bare = replace(data.trait(DEFAULT_TRAIT), replies=())
    monkeypatch.setattr(data, "trait", lambda _name: bare)
    with pytest.raises(SettingsError, match="no paired replies: write some, or choose the method mean_diff"):
        engine.launch(heal_settings(model="demo", extract={"method": "replies"}))
    assert all(run.is_example for run in engine.runs.rows())


def test_the_model_s_own_method_and_the_same_one_by_name_are_one(engine, tmp_path):
    assert next(iter(engine.methods().items())) == ("auto", "auto (persona: difference of means)")
    vectors = Vectors(tiny.shared(), tmp_path)
    assert vectors.vector(DEFAULT_TRAIT, "auto") is vectors.vector(DEFAULT_TRAIT, "mean_diff")
    assert vectors.vector(DEFAULT_TRAIT, "replies").meta["method"] == "replies"
    asked = [request().model_copy(update={"method": method}) for method in ("auto", "mean_diff", "replies")]
    answers = Answers(tiny.shared(), vectors, HealedRounds(tiny.shared(), engine.runs))
    keys = [answers.key(one) for one in asked]
    assert keys[0] == keys[1] != keys[2]


def test_who_waits_begins_together_and_each_gets_what_it_would_get_alone(engine, tmp_path, batches):
    hows: list[dict[str, Any]] = [{}, {"seed": 5}, {"greedy": True, "n": 5}, {"temperature": 0.6, "n": 20}]
    asked = {
        f"s{number}": request(f"prompt {number % 5}", alpha=number - 4.0, **hows[number % 4])
        for number in range(9)
    }
    together = Crowd(engine, asked).run()
    assert batches == [18]
    other = Engine(lm=tiny.endless(), runs_dir=tmp_path / "r2", db=tmp_path / "2.duckdb")
    alone = {name: ids(list(other.steer(one, session="x"))[-1]) for name, one in asked.items()}
    other.close()
    assert together == alone


def test_a_bad_request_in_company_fails_alone(engine):
    asked = {"good": request("fine"), "long": request("long " * 1599), "also": request("fine too")}
    crowd = Crowd(engine, asked)
    got = crowd.run()
    assert got.keys() == {"good", "also"}
    assert all(crowd.frames[name][-1].done for name in got)
    assert "tokens" in crowd.errors["long"]


def test_a_batch_that_breaks_is_written_again_one_by_one(engine, monkeypatch, caplog):
    """Whose rows the model cannot take gets the error; the others get their whole answers."""
    asked = {f"s{number}": request(f"prompt {number}", alpha=float(number)) for number in range(3)}
    expected = {name: ids(list(engine.steer(one, session="x"))[-1]) for name, one in asked.items()}

    def decode(lm: Any, rows: Any, *rest: Any, **options: Any) -> Iterator[Any]:
        for number, step in enumerate(generate.decode(lm, rows, *rest, **options)):
            if number == 3 and any(row.alpha == 2.0 for row in rows):
                raise RuntimeError("no memory for this one")
            yield step

    monkeypatch.setattr(answer_batch, "decode", decode)
    crowd = Crowd(engine, asked)
    got = crowd.run()
    assert crowd.errors == {"s2": "no memory for this one"}
    assert {name: got[name] for name in ("s0", "s1")} == {name: expected[name] for name in ("s0", "s1")}
    assert "written alone" in caplog.text


def test_one_that_is_replaced_in_company_leaves_and_the_others_go_on(engine):
    names = [f"s{number}" for number in range(4)]
    streams = {name: engine.steer(request(f"long {name}", n=300), session=name) for name in names}
    for stream in streams.values():
        while not next(stream).steered:
            pass
    newer = list(engine.steer(request("newer", n=3), session="s1"))
    assert newer[-1].done
    last = list(streams["s1"])[-1]
    assert (last.done, last.superseded, len(last.steered) < 300) == (True, True, True)
    assert not next(streams["s2"]).done
    for name in ("s0", "s2", "s3"):
        engine.stop(name)
        assert list(streams[name])[-1].message == "Stopped."


def test_a_vector_is_measured_once_for_all_who_need_it(engine, monkeypatch):
    measured, calibrated = [], Vectors.calibrated

    def count(vectors: Vectors, *args: Any, **options: Any) -> Any:
        measured.append(args[2])
        return calibrated(vectors, *args, **options)

    monkeypatch.setattr(Vectors, "calibrated", count)
    asked = {f"s{n}": request(f"new {n}").model_copy(update={"band": (0.0, 0.5)}) for n in range(3)}
    crowd = Crowd(engine, asked)
    assert len(crowd.run()) == 3
    assert measured == [(0, 1)]
    assert all("Measuring" in frames[0].message for frames in crowd.frames.values())


def test_only_so_many_begin_together_as_fit_and_the_others_wait(engine, monkeypatch, batches):
    monkeypatch.setattr(answer_batch, "rows_that_fit", lambda *_: 2)
    asked = {f"s{number}": request(f"fits {number}", n=4) for number in range(5)}
    got = Crowd(engine, asked).run()
    assert batches == [4, 4, 2]
    assert len(got) == 5
    assert AT_ONCE >= 3
