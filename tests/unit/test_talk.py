"""Conversations on a tiny model: base, steered and healed voices, and that the base stays the base."""

import shutil
from typing import Any

import pytest
import torch

from steer_heal.config import (
    SettingsError,
    SteerRequest,
    TalkRequest,
    Voice,
    build,
    read_voice,
)
from steer_heal.engine import Engine, talk
from steer_heal.evaluate import text_health
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models.kept import Kept
from steer_heal.records import TalkFrame
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.crowd import BAND, Crowd, request
from tests.rounds import shaken_run

SAID = ({"role": "user", "content": "What is right?"},)


@pytest.fixture
def lm():
    return tiny.endless()


@pytest.fixture
def engine(lm, tmp_path, measured):
    made = Engine(lm=lm, runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb", cache_dir=measured)
    yield made
    made.close()


def asked(*voices: str, alpha: float = 2.0, n: int = 1, messages: Any = SAID, **sample: Any) -> TalkRequest:
    said = [build(Voice, messages=messages, **read_voice(name, alpha)) for name in voices]
    drawn = {"max_new_tokens": 8, **sample}
    return build(TalkRequest, voices=tuple(said), n=n, band=BAND, sample=drawn)


def ids(frame: TalkFrame) -> list[list[list[int]]]:
    return [[[token.id for token in one.tokens] for one in column] for column in frame.voices]


def test_base_steered_and_two_healed_rounds_answer_side_by_side(engine, lm, tmp_path):
    run = shaken_run(lm, tmp_path / "runs")
    before, state = tiny.logits(lm), lm.state
    hashes = Kept(lm.model).hashes()
    frames = list(engine.talk(asked("base", "steered", f"{run}/1", f"{run}/2", n=2), session="a"))
    last = frames[-1]
    assert last.done
    assert not any(frame.done for frame in frames[:-1])
    assert "one batch" in last.together
    assert "in turn" in last.together
    columns = ids(last)
    assert [len(column) for column in columns] == [2] * 4
    assert all(len(one) == 8 for column in columns for one in column)
    assert len({str(column) for column in columns}) == 4
    assert all(column[0] != column[1] for column in columns)
    assert all(one.health is not None for column in last.voices for one in column)
    own = last.voices[0][0].health
    assert own is not None
    assert own.perplexity_ratio == pytest.approx(1.0)
    assert torch.equal(tiny.logits(lm), before)
    assert Kept(lm.model).hashes() == hashes
    assert lm.state == state


def test_an_answer_is_read_after_what_was_answered_before(engine, monkeypatch):
    read = []

    def health(*args, earlier, **how):
        read.append(earlier)
        return text_health.health(*args, earlier=earlier, **how)

    monkeypatch.setattr(talk, "health", health)
    answers = ({"role": "assistant", "content": said} for said in ("That it is.", "It is that."))
    longer = [turn for answer in answers for turn in (*SAID, answer)]
    list(engine.talk(asked("base", messages=(*longer, *SAID)), session="a"))
    assert read == ["That it is.\nIt is that."]


def test_a_healed_voice_has_the_probabilities_of_the_model_with_the_adapters_on(engine, lm, tmp_path):
    run = shaken_run(lm, tmp_path / "runs")
    request = asked(f"{run}/2", temperature=1.0, top_p=1.0)
    first, again = (list(engine.talk(request, session="a"))[-1].voices[0][0] for _ in range(2))
    assert first.tokens == again.tokens
    stack = AdapterStack(lm)
    for number in (1, 2):
        stack.load(number, tmp_path / "runs" / run / "adapters")
    text = lm.encode_chat([*SAID])
    for token in first.tokens:
        p = float(tiny.logits(lm, tuple(text))[0, -1].softmax(-1)[token.id])
        assert_near(token.p, p, model_rounding(lm), 1.0)
        text.append(token.id)
    stack.unload()


def test_whoever_is_answered_meanwhile_gets_the_base(engine, lm, tmp_path):
    run = shaken_run(lm, tmp_path / "runs")
    before = tiny.logits(lm)
    for _ in engine.talk(asked(f"{run}/2"), session="a"):
        assert torch.equal(tiny.logits(lm), before)


def test_a_model_that_goes_through_transformers_is_healed_in_one_go(engine, lm, tmp_path):
    run = shaken_run(lm, tmp_path / "runs")
    known = ids(list(engine.talk(asked(f"{run}/2", temperature=1.0, top_p=1.0), session="a"))[-1])
    lm.model.lm_head.register_forward_hook(lambda *_: None)
    lm.model.model.norm.register_forward_hook(lambda *_: None)
    assert ids(list(engine.talk(asked(f"{run}/2", temperature=1.0, top_p=1.0), session="a"))[-1]) == known


def test_the_messages_before_count_and_nothing_typed_is_a_control_token(engine, lm):
    longer = (*SAID, {"role": "assistant", "content": "<end_of_turn>"}, {"role": "user", "content": "Why?"})
    one, other = (
        list(engine.talk(asked("base", messages=said), session="a"))[-1].voices[0][0].tokens
        for said in (SAID, longer)
    )
    assert one[0].p != other[0].p
    shown = lm.encode_chat([*longer])
    assert shown.count(tiny.SPECIAL.index("<end_of_turn>")) == 3


def test_what_cannot_be_answered_is_said_in_one_sentence(engine, lm, tmp_path):
    run, foreign = shaken_run(lm, tmp_path / "runs"), shaken_run(lm, tmp_path / "runs", model="demo")

    def refused(match: str, *voices: str, **more: Any) -> None:
        with pytest.raises(SettingsError, match=match):
            list(engine.talk(asked(*voices, **more), session="a"))

    refused("healed demo, and here tiny-gemma3 answers", f"{foreign}/1")
    refused("it has only up to round 2", f"{run}/3")
    refused("came without its adapters", "example-care-over-authority/1")
    refused("what was said stays as it is", "base", messages=({"role": "user", "content": "word " * 450},))
    answering = engine.talk(asked(f"{run}/1"), session="b")
    next(answering)
    shutil.rmtree(tmp_path / "runs" / run)
    assert list(answering)[-1].done, "what was begun is written to its end"
    refused(f"There is no run {run} to talk to", f"{run}/1")
    assert list(engine.talk(asked("base"), session="a"))[-1].done


def test_a_newer_question_of_a_session_ends_the_older_and_stopping_leaves_what_is_written(engine):
    frames = []
    for frame in engine.talk(asked("base", max_new_tokens=400), session="a"):
        frames.append(frame)
        if len(frame.voices[0][0].tokens) >= 3:  # a reader that is slow misses some
            engine.stop("a")
    assert (frames[-1].done, frames[-1].message) == (True, "Stopped.")
    assert frames[-1].voices[0][0].tokens


def test_people_who_talk_share_batches_with_each_other_and_with_pairs(engine, lm, tmp_path, batches):
    """A page's pair, two that are steered by the same vector, and two who ask a healed round: two batches."""
    run = shaken_run(lm, tmp_path / "runs")
    list(engine.talk(asked("steered"), session="a"))  # its vector is measured
    del batches[:]
    wanted: dict[str, SteerRequest | TalkRequest] = {
        "a": asked("base", "steered", n=2),
        "b": asked("steered", alpha=1.0, messages=({"role": "user", "content": "Why?"},)),
        "c": asked("steered", f"{run}/2", n=2, seed=5),
        "d": asked(f"{run}/2", "steered", alpha=-1.0),
        "pair": request("third", n=4),
    }
    together = Crowd(engine, wanted).run()
    assert sorted(batches) == [3, 10]
    for name, one in wanted.items():
        alone = Crowd(engine, {name: one}).run()
        assert together[name] == alone[name]
