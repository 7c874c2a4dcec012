"""Frames whose answer follows a thought of fixed length and a nudge, on the tiny models."""

from dataclasses import replace

import pytest
import torch

from steer_heal import forward
from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.evaluate import tinymfv
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.questions import Asking, ask
from steer_heal.evaluate.scoring import think
from steer_heal.forward.ours import OurForward
from steer_heal.forward.plain import PlainForward
from steer_heal.models import user
from steer_heal.records import Vignette
from steer_heal.vectors.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding

VIGNETTES = [
    Vignette("a", "Care", "You see someone kick a dog.", "other_violate"),
    Vignette("b", "Liberty", "You see a man.", "other_violate"),
]
FRAME = tinymfv.frame(6)


def by_hand(lm, prompt, after, n_thought, avoid, directions, row_L):
    """Token after token over the whole text, with no cache."""
    ids = list(prompt)
    with torch.no_grad(), steer(lm.blocks, directions, row_L[None]):
        for _ in range(n_thought):
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
            logits[sorted(avoid)] = -torch.inf
            ids.append(int(logits.argmax()))
        return lm.model(input_ids=torch.tensor([[*ids, *after]])).logits[0, -4:]


def test_thought_and_rest_in_one_cache_are_the_whole_text_read_at_once(lm):
    prompts, after = [[2, 9, 30, 31, 40], [2, 41, 42]], (33, 34, 35, 36, 37)
    directions = tiny.directions(lm)
    rows_BL = torch.cat([coefficients(4, (1, 2), 2.0), coefficients(4, (), 0.0)])
    asked = [forward.Asked(tuple(prompt), dose=dose) for dose, prompt in enumerate(prompts)]
    for kind in (OurForward, PlainForward):
        with torch.inference_mode():
            found = {}
            for numbers, rows in kind(lm, directions).read(asked, rows_BL, room=5 + len(after)):
                think(rows, 5, lm.eos_ids, after, 4)
                found |= zip(numbers, rows.logits(slice(None)), strict=True)
        for row, prompt in enumerate(prompts):
            expected = by_hand(lm, prompt, after, 5, lm.eos_ids, directions, rows_BL[row])
            assert_near(found[row], expected, model_rounding(lm))


def test_the_question_is_opened_once_and_ends_as_a_turn_of_its_own():
    lm = tiny.shared("gemma3")
    first, reverse = ask(Asking(lm, torch.zeros(1, 4), torch.zeros(4, 32)), VIGNETTES[:1], FRAME)
    text = lm.tokenizer.decode(list(first.ids))
    assert text.startswith("<bos><start_of_turn>user\nYou see someone kick a dog.\n\nHere is")
    assert text.endswith("<start_of_turn>model\n<think>\n")
    after = lm.tokenizer.decode(list(first.after))
    assert after == (
        "</think><end_of_turn>\n<bos><start_of_turn>user\nJust answer<end_of_turn>\n"
        '<start_of_turn>model\nThis is wrong because {"violation": "'
    )
    assert '"0", # It violates norms of harm' in text
    assert '"0", # It is not morally wrong' in lm.tokenizer.decode(list(reverse.ids))
    assert lm.chat.interruption("Go") == (
        "<end_of_turn>\n<start_of_turn>user\nGo<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_thought_that_the_template_opens_is_not_opened_twice():
    words = tiny.tokenizer(
        tiny.TEMPLATE.replace("<start_of_turn>model\n' }}{%- endif", "<think>\n' }}{%- endif")
    )
    lm = tiny.language_model("gemma3")
    lm.tokenizer.chat_template = words.chat_template
    (row, _) = ask(Asking(lm, torch.zeros(1, 4), torch.zeros(4, 32)), VIGNETTES[:1], FRAME)
    assert lm.tokenizer.decode(list(row.ids)).count("<think>") == 1


def test_the_reversed_lists_digits_are_turned_back():
    """A model that always says "0": Care in one order, SocialNorms in the other, nothing between."""
    lm = tiny.language_model("gemma3")
    zero = lm.encode_chat([user("?")], '"0')[-1]

    def always(_module, _inputs, output):
        logits = torch.full_like(output.logits, 0.0)
        logits[..., zero] = 9.0
        output.logits = logits
        return output

    handle = lm.model.register_forward_hook(always)
    found = evaluate(lm, VIGNETTES, FRAME)[0]
    handle.remove()
    p = found.per_vignette[0].p
    assert p["Care"] == pytest.approx(p["SocialNorms"])
    assert p["Care"] > 0.4 > p["Fairness"]
    forward = evaluate(lm, VIGNETTES, replace(FRAME, orders=("forward",)))[0]
    assert set(forward.p) == set(FOUNDATIONS)


def test_bad_frames_are_refused():
    options = tuple(f"{name} act" for name in FOUNDATIONS)
    with pytest.raises(SettingsError, match="one token each"):
        evaluate(tiny.shared("llama"), VIGNETTES, replace(FRAME, options=options, answer="word"))
    with pytest.raises(SettingsError, match="0 tokens or more"):
        tinymfv.frame(-1)
