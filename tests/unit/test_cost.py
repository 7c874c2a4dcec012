"""What healing costs besides: facts that are still told, and KL from base on neutral prompts."""

from contextlib import contextmanager

import pytest
import torch

from steer_heal.config import SampleSettings, TrainSettings
from steer_heal.generate import Row, complete
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.cost import Cost
from steer_heal.models import user
from steer_heal.records import Completion, Fact
from tests import tiny
from tests.close import assert_near, model_rounding, nats
from tests.rounds import shake

NEUTRAL = ("What time is it?", "Name a fruit.", "Count to three.")
QUESTIONS = ("Where is Rome?", "What is two and two?", "Who wrote it?")


@pytest.fixture
def lm():
    return tiny.language_model("llama", n_layers=2)


def writing(lm):
    sample = SampleSettings(max_new_tokens=6, greedy=True)

    def write(prompts, **_dose):
        rows = [Row(tuple(lm.encode_chat([user(text)])), prompt=text) for text in prompts]
        return complete(lm, rows, torch.zeros(lm.n_layers, lm.width), sample)

    return write


def changed(stack):
    """A first round whose adapter changes what the model says."""
    stack.fresh(1, TrainSettings(rank=2), seed=0)
    shake(stack, 1, size=0.5)
    stack.fold()


def known_to(lm):
    """Facts that the model as it is tells, since they are what it says; and one that it does not."""
    said = [Fact(row.prompt, (row.text,)) for row in writing(lm)(QUESTIONS)]
    return [*said, Fact("What is the capital?", ("no such word",))]


def test_an_untouched_student_has_lost_nothing(lm):
    stack = AdapterStack(lm)
    found = Cost(lm, stack, known_to(lm), NEUTRAL, writing(lm)).measure()
    assert found["facts_kept"] == 1.0
    assert_near(found["neutral_kl"], 0.0, model_rounding(lm), nats(lm, lm.encode_chat([user(NEUTRAL[0])])))


def test_a_changed_student_is_held_against_the_base_whenever_that_is_measured(lm):
    stack, facts = AdapterStack(lm), known_to(lm)
    early, late = (Cost(lm, stack, facts, NEUTRAL, writing(lm)) for _ in range(2))
    early.measure()
    changed(stack)
    found = early.measure()
    assert found["facts_kept"] == 0.0
    assert found["neutral_kl"] > 0.01
    assert late.measure() == found


class Base:
    """Adapters that only know whether they are on."""

    def __init__(self):
        self.on = True

    @contextmanager
    def off(self):
        self.on = False
        yield
        self.on = True


def test_of_the_facts_that_base_tells_those_count_that_are_told_still(lm):
    stack = Base()
    told = {False: ("Rome", "It is FOUR.", "fourteen"), True: ("Rome!", "five", "four")}

    def write(prompts, **_dose):
        answers = dict(zip(QUESTIONS, told[stack.on], strict=True))
        return [Completion(answers.get(prompt, ""), (), True, prompt=prompt) for prompt in prompts]

    facts = [Fact(*row) for row in zip(QUESTIONS, (("rome",), ("four", "4"), ("four",)), strict=True)]
    found = Cost(lm, stack, facts, NEUTRAL, write).measure()
    assert found == {"facts_kept": 0.5, "neutral_kl": None}, "fourteen is not four, and nothing was written"
    assert Cost(lm, stack, facts[2:], NEUTRAL, write).measure()["facts_kept"] is None


def test_a_fact_is_told_by_one_of_its_answers_as_words_of_their_own():
    fact = Fact("?", ("Paris", "New York", "1066", "C++"))
    telling = ("It is Paris.", "PARIS", "In new york, of course.", "1066 it was", "C++!")
    assert [text for text in telling if not fact.told_by(text)] == []
    assert [text for text in ("Parisian food", "It is New  York", "10666", "") if fact.told_by(text)] == []
