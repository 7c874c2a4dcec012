"""A trait of one's own: made from two poles, kept as a file, listed beside ours."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steer_heal import data, models
from steer_heal.config import (
    AUTO,
    AUTO_FRAME,
    DEFAULT_TRAIT,
    DoseRequest,
    SampleSettings,
    SettingsError,
    build,
    changed,
    heal_settings,
)
from steer_heal.data import own_traits
from steer_heal.engine import Engine
from steer_heal.engine.requests import Waiting
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate import drafts, scenes
from steer_heal.evaluate.agreement import NO_LABELS
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.drafts import Reply
from steer_heal.evaluate.frames import Frames
from steer_heal.records import Agreement, Effect
from steer_heal.runs import validate
from steer_heal.vectors.vector import reply_residuals
from tests import tiny
from tests.crowd import BAND, request

FORMAL = ("trait", "make", "formal", "--plus", "formal", "--minus", "casual")


PLUS, MINUS = "Good day to you, number {}.", "Hey there, number {}!"
SCENES = [f"Should I go to number {n}?" for n in range(14)]


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's model is a tiny one that drafts what a larger one would."""

    def replies(
        _lm: object, _plus: str, _minus: str, prompts: Sequence[str], say: Callable[[str], None]
    ) -> tuple[list[Reply], list[Reply]]:
        say("drafts what either would say")
        numbers = range(len(prompts))
        return [Reply(PLUS.format(n), 0.2) for n in numbers], [Reply(MINUS.format(n), 0.1) for n in numbers]

    monkeypatch.setattr(drafts, "replies", replies)
    monkeypatch.setattr(scenes, "drafted", lambda *_: SCENES[:9])
    monkeypatch.setattr(models, "load", lambda _name: tiny.shared("llama"))


def test_two_words_are_a_trait_that_is_kept_shown_and_deleted(run: Any, tmp_path: Path) -> None:
    code, said, _ = run(*FORMAL)
    assert code == 0
    assert "21 of 21 pairs of replies that tiny-llama drafted are sound." in said
    assert "measure + Good day to you, number 0.\nmeasure - Hey there, number 0!\n" in said
    made = data.trait("formal")
    assert made.statements == tuple((PLUS.format(n), MINUS.format(n)) for n in range(6))
    assert made.replies == tuple((PLUS.format(n), MINUS.format(n)) for n in range(9, 21))
    ours = tiny.shared("llama").material
    assert made.scenes[:9] == tuple(SCENES[:9])
    assert len(set(made.scenes[9:]) & set(ours.contexts("")) - set(ours.held_out_prompts())) == 3
    assert f"reply ? {SCENES[8]}\nreply + {PLUS.format(17)}\nreply - {MINUS.format(17)}\n" in said
    assert (made.title, made.positive, made.negative) == (
        "Formal over casual",
        "You are formal.",
        "You are casual.",
    )
    assert made.target == {"formal": 1, "casual": -1}
    assert list(data.traits()) == [*data.bundled_traits(), "formal"]
    assert re.search(r"^formal +yours +its own axis ", run("trait", "list")[1], re.M)
    shown = run("trait", "show", "formal")[1]
    assert "more: You are formal." in shown
    assert "measured on its own axis: formal against casual" in shown
    out = tmp_path / "sent.json"
    assert run("trait", "export", "formal", "--out", str(out))[0] == 0
    poles = ("--plus", "stiff", "--minus", "loose", "--replies", str(out))
    assert run("trait", "make", "stiff", *poles)[0] == 0
    assert (data.trait("stiff").replies, data.trait("stiff").scenes) == (made.replies, made.scenes)
    assert run("trait", "delete", "formal")[0] == 0
    assert "formal" not in data.traits()
    assert run("trait", "import", str(out))[0] == 0
    assert data.trait("formal") == made


def test_they_are_kept_in_the_user_s_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("STEER_HEAL_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    tiny.own_trait()
    assert data.trait("formal") == data.own_trait(tmp_path / "steer-heal" / "traits" / "formal.json")


def test_personas_replies_and_a_target_are_taken_as_they_stand(run: Any, tmp_path: Path) -> None:
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps([["Poor thing.", "Rules are rules."], ["Help them.", "Ask first."]]))
    more = ("--target", "care=1, Social Norms=-1", "--replies", str(replies))
    poles = ("--plus", "You are a nurse who hurries.", "--minus", "You are a clerk who waits.")
    assert run("trait", "make", "nurse", *poles, *more)[0] == 0
    made = data.trait("nurse")
    assert made.positive == "You are a nurse who hurries."
    assert made.target == {"Care": 1, "SocialNorms": -1}
    assert made.replies[0] == ("Poor thing.", "Rules are rules.")
    assert made.scenes == data.trait("liberty_over_custom").scenes[-len(made.scenes) :]
    assert [mark for mark, _ in made.spoken()] == ["+", "-"] * 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("make", "x", "--plus", "blunt"), "two poles"),
        (("make", "x", "--plus", "blunt", "--minus", " "), "pole is empty"),
        (("make", "x", "--plus", "Blunt", "--minus", "blunt"), "two that differ"),
        (("make", "../x", "--plus", "a", "--minus", "b"), "will not do"),
        (("make", DEFAULT_TRAIT, "--plus", "a", "--minus", "b"), "trait of ours"),
        (("make", "x", "--plus", "a", "--minus", "b", "--target", "Love=1"), "no target"),
        (("make", "x", "--plus", "a", "--minus", "b", "--replies", "none.json"), "cannot be read"),
        (("make", "x", "--plus", "a" * 10_000, "--minus", "b"), "has 10,000 characters: give at most 480."),
        (("show",), "Name the trait"),
        (("make", "x", "--plus", "You are blunt.", "--minus", "blunt"), "two that differ"),
        (("export", DEFAULT_TRAIT), "trait of ours"),
        (("delete", DEFAULT_TRAIT), "of your own"),
        (("import", "none.json"), "none.json"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_one_sentence_and_leaves_nothing(
    run: Any, words: tuple[str, ...], why: str
) -> None:
    code, _, said = run("trait", *words)
    assert code == 2
    assert why in said
    assert said.count("\n") == 1
    assert own_traits.files() == {}


def test_one_is_never_written_over(run: Any) -> None:
    run(*FORMAL)
    before = own_traits.files()["formal"].read_bytes()
    code, _, said = run("trait", "make", "formal", "--plus", "stiff", "--minus", "loose")
    assert (code, "There is a trait 'formal'" in said) == (2, True)
    assert own_traits.files()["formal"].read_bytes() == before


def test_a_broken_file_is_left_out_and_told_to_who_asks_for_it(run: Any) -> None:
    run(*FORMAL)
    own_traits.files()["formal"].write_text('{"name": "formal",')
    assert "formal" not in data.traits()
    assert "formal is left out" in "".join(run("trait", "list")[1:])
    with pytest.raises(SettingsError, match=r"formal\.json line 1: not JSON"):
        data.trait("formal")


def test_its_vector_is_of_its_personas_and_a_run_is_on_its_own_axis(tmp_path: Path) -> None:
    tiny.own_trait()
    vectors = Vectors(tiny.shared("llama"), tmp_path)
    assert vectors.method(AUTO, "formal") == "mean_diff"
    assert vectors.vector("formal").meta["positive"] == "You are formal."
    run = heal_settings(model="demo", trait="formal")
    assert validate.check(run).extract.method == "mean_diff"
    with pytest.raises(SettingsError, match=r"measured on its own axis.*leave the frame at auto"):
        validate.check(changed(run, evaluate={"frame": "choice"}))
    with pytest.raises(SettingsError, match=r"measured by its foundations.*leave the frame at auto"):
        validate.check(changed(run, trait=DEFAULT_TRAIT, evaluate={"frame": "own:formal"}))


@pytest.mark.parametrize(
    ("personas", "names"),
    [
        (("You are formal.", "You are casual."), ("formal", "casual")),
        (
            ("You are a pirate, who never sleeps and says so.", "you are  Care"),
            ("a pirate, who never sleeps a ...", "care"),
        ),
        (("Speak like a sailor.", "Speak like a Clerk"), ("speak like a sailor", "speak like a clerk")),
        ((f"You are {'very ' * 9}old.", f"You are {'very ' * 9}young."), ("plus", "minus")),
    ],
)
def test_its_own_axis_is_of_its_statements_and_named_after_its_personas(
    personas: tuple[str, str], names: tuple[str, str]
) -> None:
    said = [["Ay.", "Yes."], ["Nay.", "No."]]
    row = own_traits.of_poles("x", "a", "b", statements=said)
    trait = data.checked_trait("a trait", row | dict(zip(("positive", "negative"), personas, strict=True)))
    assert trait.on_own_axis
    frame = data.own_axis(trait)
    assert frame.names == tuple(trait.target) == names
    assert [wording.options for wording in frame.wordings] == [("Ay.", "Yes."), ("Nay.", "No.")]


def test_a_file_without_statements_is_not_measured_until_the_model_has_drafted_some(run: Any) -> None:
    mine = [["Odd, I say.", "Even, I say."]]
    tiny.own_trait("x", "odd", "even", statements=[], replies=mine)
    with pytest.raises(SettingsError, match=r"has no statements.*with `trait make x`"):
        data.frame("own:x")
    assert run("trait", "make", "x")[0] == 0
    assert len(data.own_axis(data.trait("x")).wordings) == 6
    assert data.trait("x").replies == (("Odd, I say.", "Even, I say."),)


def test_a_trait_with_foundations_has_no_own_axis() -> None:
    tiny.own_trait("hard", "hard", "soft", target={"Care": -1})
    assert data.frame_of(data.trait("hard")) == AUTO_FRAME
    with pytest.raises(SettingsError, match="measured by its foundations"):
        data.frame("own:hard")


def test_what_a_pole_would_say_never_becomes_a_control_token() -> None:
    lm, said = tiny.shared("llama"), [["Odd.<end_of_turn>", "Even."]]
    tiny.own_trait("x", "odd", "even", statements=said, replies=said)
    with pytest.raises(SettingsError, match="statement of the trait holds a control token"):
        evaluate(lm, lm.material.vignettes(limit=2), data.frame("own:x"))
    with pytest.raises(SettingsError, match="reply of 'x' holds a control token"):
        reply_residuals(lm, data.trait("x"))


def test_poles_measured_before_are_not_those_of_a_trait_made_again(tmp_path: Path) -> None:
    frames = Frames(tiny.shared("llama"), tmp_path)
    for poles in (("formal", "casual"), ("stiff", "loose")):
        tiny.own_trait("x", *poles)
        assert tuple(frames.of("own:x").p) == poles
        own_traits.delete("x")


def test_what_a_draft_waits_for_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = engine.scheduler.run, []

    def behind_two(*asked: Any, **how: Any) -> Iterator[Any]:
        yield Waiting(2)
        yield from run(*asked, **how)

    monkeypatch.setattr(engine.scheduler, "run", behind_two)
    engine.make_trait("formal", "casual", progress=told.append)
    assert told == ["waiting for 2 ahead", "tiny-gemma3 drafts what either would say"]


def test_on_the_page_it_is_drafted_once_and_its_replies_may_be_edited(engine: Engine) -> None:
    made, said = engine.make_trait("formal", "casual")
    assert said == (
        "21 of 21 pairs of replies that tiny-gemma3 drafted are sound. They answer 9 scenes that it drafted "
        "and 3 of ours, for want of more."
    )
    assert engine.make_trait("formal", "casual") == (made, "")
    assert engine.make_trait("formal", "casual", made.replies) == (made, "")
    edited = replace(made, replies=(("Good day.", "Hey."),), replies_drafted=False)
    assert engine.make_trait("formal", "casual", edited.replies) == (edited, "")
    assert (made.by_replies, edited.by_replies) == (False, True)
    assert replace(made, target={"Care": 1}).by_replies
    with pytest.raises(SettingsError, match="the same text as entry 1"):
        engine.make_trait("formal", "casual", [("Good day.", "Good day.")])
    assert data.trait(made.name) == edited
    asked = replace(edited, scenes=("Am I late?",))
    assert engine.make_trait("formal", "casual", edited.replies, scenes=asked.scenes) == (asked, "")
    again, said = engine.make_trait("formal", "casual", scenes=SCENES[9:])
    assert again.scenes[:5] == tuple(SCENES[9:])
    assert again.replies_drafted
    assert said.endswith("They answer 5 scenes as given and 7 of ours, for want of more.")
    with pytest.raises(SettingsError, match="'scenes' entry 2: the same text as entry 1"):
        engine.make_trait("formal", "casual", scenes=["Am I late?", "Am I late?"])
    engine.make_trait("formal", "casual", edited.replies, scenes=edited.scenes)
    aimed = replace(edited, target={"Care": -1, "SocialNorms": 1})
    assert engine.make_trait("formal", "casual", target="Care=-1, social norms=1") == (aimed, "")
    with pytest.raises(SettingsError, match="'Love=1' is no target"):
        engine.make_trait("formal", "casual", target="Love=1")


def test_what_is_measured_of_it_are_its_two_poles(engine: Engine) -> None:
    tiny.own_trait()
    asked = build(
        DoseRequest, trait="formal", alphas=(0.0, 1.0), band=BAND, n_vignettes=3, controls=2,
        sample=build(SampleSettings, max_new_tokens=3),
    )  # fmt: skip
    sweep = list(engine.dose(asked, session="a"))[-1]
    for row in sweep.rows:
        assert row.profile is not None
        assert sum(row.profile.p.values()) == pytest.approx(1.0)
        assert set(row.profile.p) == {"formal", "casual"}
        assert row.profile.agreement == Agreement(why=NO_LABELS)
    base, steered = (row.profile for row in sweep.rows)
    assert base
    assert steered
    moved = steered.p["formal"] - base.p["formal"]
    assert sweep.movement == pytest.approx(2 * moved)
    assert sweep.controls
    assert len(sweep.controls.shifts(data.trait("formal").target)) == 2
    *_, effect = engine.effect(asked, session="a")
    assert isinstance(effect, Effect)
    assert set(effect.steered) == set(effect.intervals) == {"formal", "casual"}
    assert set(engine.profile(request().model_copy(update={"trait": "formal"}))[1].p) == set(effect.steered)
