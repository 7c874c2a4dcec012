"""What a model drafts for a trait: guided by both personas, checked, and refused where it is no good."""

import math

import pytest
import torch

from steer_heal import data
from steer_heal.config import SettingsError
from steer_heal.data import own_traits
from steer_heal.evaluate import drafts, scenes
from steer_heal.evaluate.drafts import GUIDANCE, PLAUSIBLE, Reply
from steer_heal.models import system, user
from steer_heal.records import Completion
from tests import tiny

PLUS, MINUS = "You are odd.", "You are even."
ROW = own_traits.of_poles("odd", "odd", "even")


@torch.no_grad()
def by_hand(lm, own: str, other: str, prompt: str, n: int) -> list[int]:
    """The first `n` tokens of a draft, by transformers' own forward."""
    ids, barred = [], drafts.own_words(lm, PLUS, MINUS)
    for _ in range(n):
        both = [lm.encode_chat([system(told), user(prompt)]) + ids for told in (own, other)]
        logits = [
            lm.model(torch.tensor([one])).logits[0, -1].index_fill(0, torch.tensor(barred), -1e30)
            for one in both
        ]
        me, them = (one.log_softmax(-1) for one in logits)
        score = torch.where(me < me.max() + math.log(PLAUSIBLE), -torch.inf, me + GUIDANCE * (me - them))
        ids.append(int(score.argmax()))
    return ids


def test_a_draft_is_what_its_own_persona_says_and_the_other_does_not(lm, monkeypatch) -> None:
    monkeypatch.setattr(drafts, "N_TOKENS", 3)
    monkeypatch.setattr(drafts, "ended", lambda _lm, tokens: [token for token, _ in tokens])
    prompts = ("What now?", "Tell me of the sea.")
    found = drafts.replies(lm, PLUS, MINUS, prompts, lambda _text: None)
    for said, poles in zip(found, ((PLUS, MINUS), (MINUS, PLUS)), strict=True):
        for prompt, ids in zip(prompts, said, strict=True):
            assert ids == by_hand(lm, *poles, prompt, 3)[: len(ids)]


@pytest.mark.parametrize(
    ("plus", "minus", "sound"),
    [
        (Reply("To be frank, no.", 0.1), Reply("Perhaps another day, then.", 0.1), True),
        (Reply("To be frank, no.", 0.1), Reply("Perhaps another day, then.", -0.1), False),
        (Reply("To be frank, no.", 0.1), Reply("Perhaps not.", 0.1), False),
        (Reply("To be frank, no.", 0.1), Reply("To be frank, no.", 0.1), False),
        (Reply("To be frank, no.", 0.1), Reply("No, no, no, it is not a thing that I would do.", 0.1), False),
        (Reply("To be frank, no.", 0.1), Reply("Well, well, it is. Well, it is. Well, well.", 0.1), False),
    ],
)
def test_a_pair_is_sound_that_differs_on_either_side_is_long_enough_and_repeats_nothing(
    plus, minus, sound
) -> None:
    assert drafts.sound(plus, minus) is sound


def test_poles_that_the_model_cannot_tell_apart_are_refused_with_the_number(monkeypatch) -> None:
    lm = tiny.shared("llama")

    def replies(_lm, _plus, _minus, prompts, _say):
        same = [Reply(f"This is number {n}.", 0.1) for n, _ in enumerate(prompts)]
        return same, [*same[:-2], Reply("But this is another.", 0.1), Reply("And so is this.", 0.1)]

    monkeypatch.setattr(drafts, "replies", replies)
    monkeypatch.setattr(scenes, "drafted", lambda *_: [])
    trait = data.checked_trait("odd", ROW)
    with pytest.raises(SettingsError, match=r"cannot tell 'You are odd\.' from .*of 21 pairs.* 2 are sound"):
        drafts.completed(lm, ROW, trait)


def test_what_is_there_is_not_drafted() -> None:
    row = ROW | {"target": {"Care": 1}, "replies": [["I like odd ones.", "I like even ones."]]}
    assert drafts.completed(tiny.shared("llama"), row, data.checked_trait("odd", row)) == (row, "")


def test_a_draft_ends_with_a_sentence_where_it_can() -> None:
    lm = tiny.shared("llama")

    def reply(text: str) -> Reply:
        return drafts.ended(lm, [(token, 1.0) for token in lm.tokenizer(text)["input_ids"]])

    assert reply("This is one sentence. And another").text == "This is one sentence."
    assert reply("Yes. I would never say").text == "Yes. I would never say"


@pytest.mark.parametrize(
    ("scene", "sound"),
    [
        ("Should I sell my father's old boat?", True),
        ("Should I sell?", False),
        (f"I have {'seen and heard of ' * 10}it.", False),
        ("It is so oddly quiet at my sister's.", False),
        ("My name is [Name] and I am new here.", False),
        ("I need three things: 1. a boat 2. a hat.", False),
        ("I was at a party that had a party that had a party.", False),
    ],
)
def test_a_scene_is_sound_that_is_a_message_and_names_no_pole(scene: str, sound: bool) -> None:
    assert scenes.sound(scene, PLUS, MINUS) is sound


def test_scenes_are_a_user_s_turn_that_the_model_goes_on_with(monkeypatch) -> None:
    lm, seen = tiny.shared("llama"), []
    said = [
        " have a boat that leaks. It sank",
        " have a boat which leaks.",
        " 'd like to sell my car by noon!\nSure.",
        " said </s><end_of_turn> to my old aunt.",
        " would never end",
        " like the sea and the wind.",
    ]

    def complete(_lm, rows, _directions, sample, **_more):
        seen.extend([rows, sample])
        return [Completion(text, (), True) for text in said] + [Completion("", (), True)] * (len(rows) - 6)

    monkeypatch.setattr(scenes, "complete", complete)
    monkeypatch.setattr(scenes, "OPENINGS", ("I", "Should I"))
    found = scenes.drafted(lm, PLUS, MINUS, ["I like the sea and the wind!"], lambda _text: None)
    assert found == ["I have a boat that leaks.", "Should I 'd like to sell my car by noon!"]
    rows, sample = seen
    assert sample.seed == 0
    assert len({row.rng_stream for row in rows}) == len(rows) == 8
    for row, (persona, opening) in zip(
        rows, [(one, text) for text in ("I", "Should I") for one in (PLUS, MINUS)] * 2, strict=True
    ):
        whole = lm.encode_chat([system(persona), user(opening)])
        assert list(row.prompt_ids) == whole[: len(row.prompt_ids)]
        assert lm.tokenizer.decode(row.prompt_ids).endswith(opening)


def test_they_are_the_same_every_time(monkeypatch) -> None:
    lm = tiny.shared("llama")
    monkeypatch.setattr(scenes, "whole_sentences", lambda text: text)
    monkeypatch.setattr(scenes, "sound", lambda *_: True)
    monkeypatch.setattr(scenes, "alike", lambda *_: False)
    one, again, other = (
        scenes.drafted(lm, plus, MINUS, [], lambda _text: None) for plus in (PLUS, PLUS, "You are old.")
    )
    assert one == again != other
    assert len(set(one)) > scenes.N_DRAWN // 2


def drafted(monkeypatch, n_scenes: int, **given):
    """The odd trait completed by a model whose replies differ the more, the later they come."""

    def replies(_lm, _plus, _minus, prompts, _say):
        said = [[f"This is {how} number {n}." for n, _ in enumerate(prompts)] for how in ("so", "no")]
        return tuple([Reply(text, 0.1 + n) for n, text in enumerate(some)] for some in said)

    monkeypatch.setattr(drafts, "replies", replies)
    monkeypatch.setattr(scenes, "drafted", lambda *_: [f"Should I go to {n}?" for n in range(n_scenes)])
    row = ROW | given
    return drafts.completed(tiny.shared("llama"), row, data.checked_trait("odd", row))


def test_of_many_scenes_those_are_kept_whose_replies_differ_most(monkeypatch) -> None:
    row, said = drafted(monkeypatch, 20)
    assert row["scenes"] == [f"Should I go to {n}?" for n in range(8, 20)]
    assert row["replies"][0] == ["This is so number 17.", "This is no number 17."]
    assert len(row["replies"]) == 12
    assert said.endswith("They answer 20 scenes that it drafted. Kept are the 12 whose replies differ most.")


def test_scenes_of_one_s_own_are_answered_as_they_stand(monkeypatch) -> None:
    mine = [f"Is {n} odd?" for n in range(12)]
    row, said = drafted(monkeypatch, 5, scenes=mine)
    assert row["scenes"] == mine
    assert said.endswith("They answer 12 scenes as given.")
    with pytest.raises(SettingsError, match="Give at most 24 scenes"):
        drafted(monkeypatch, 5, scenes=[f"Is {n} odd?" for n in range(25)])


def test_statements_alone_ask_for_no_scenes(monkeypatch) -> None:
    mine = [["I like odd ones.", "I like even ones."]]
    row, said = drafted(monkeypatch, 5, replies=mine)
    assert (row["replies"], "scenes" in row, len(row["statements"])) == (mine, False, 6)
    assert said.startswith("9 of 9 pairs")
