"""What a model drafts for a trait: guided by both personas, checked, and refused where it is no good."""

import math

import pytest
import torch

from steer_heal import data
from steer_heal.config import SettingsError
from steer_heal.data import own_traits
from steer_heal.evaluate import drafts
from steer_heal.evaluate.drafts import GUIDANCE, PLAUSIBLE, Reply
from steer_heal.models import system, user
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
    found = drafts.replies(lm, PLUS, MINUS, prompts, lambda: None)
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
    ],
)
def test_a_pair_is_sound_that_differs_on_either_side_and_is_long_enough(plus, minus, sound) -> None:
    assert drafts.sound(plus, minus) is sound


def test_poles_that_the_model_cannot_tell_apart_are_refused_with_the_number(monkeypatch) -> None:
    lm = tiny.shared("llama")

    def replies(_lm, _plus, _minus, prompts, _pause):
        same = [Reply(f"This is number {n}.", 0.1) for n, _ in enumerate(prompts)]
        return same, [*same[:-2], Reply("But this is another.", 0.1), Reply("And so is this.", 0.1)]

    monkeypatch.setattr(drafts, "replies", replies)
    trait = data.checked_trait("odd", ROW)
    with pytest.raises(SettingsError, match=r"cannot tell 'You are odd\.' from .*of 18 pairs.* 2 are sound"):
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
