"""What healing costs besides: facts that are still told, and KL from base on neutral prompts."""

from collections import Counter
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

    def write(prompts, **_how):
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


@pytest.fixture
def eight_draws(monkeypatch):
    monkeypatch.setattr("steer_heal.heal.cost.DRAWS", 8)


def kept(by_base, by_student):
    """`facts_kept` where of eight answers to each question so many are right."""
    stack, facts = Base(), [Fact(question, (question,)) for question in QUESTIONS]

    def write(prompts, **_how):
        told, seen = (by_student if stack.on else by_base), Counter()
        rows = []
        for prompt in prompts:
            right = seen[prompt] < told[QUESTIONS.index(prompt)] if prompt in QUESTIONS else False
            rows.append(Completion(prompt if right else "", (), True, prompt=prompt))
            seen[prompt] += 1
        return rows

    found = Cost(tiny.language_model("llama"), stack, facts, NEUTRAL, write).measure()
    assert found["neutral_kl"] is None, "nothing was written"
    return found["facts_kept"]


def test_right_answers_count_of_the_facts_that_base_tells_in_half_of_its_own(eight_draws):
    assert kept((8, 4, 3), (8, 1, 0)) == 9 / 12
    assert kept((8, 4, 3), (4, 8, 8)) == 1.0
    assert kept((8, 4, 0), (8, 8, 0)) == 1.0, "more than base is no more than all"
    assert kept((3, 0, 0), (8, 8, 8)) is None


def test_an_answer_is_written_until_it_tells_the_fact_as_a_word_that_is_over():
    asked = {}

    def write(prompts, enough=None, **_how):
        asked.update(dict.fromkeys(prompts, enough))
        return [Completion("", (), True, prompt=prompt) for prompt in prompts]

    Cost(tiny.language_model("llama"), Base(), [Fact("Where?", ("Paris", "7"))], NEUTRAL, write).measure()
    enough = asked["Where?"]
    assert [text for text in ("It is Paris", "Parisian", "70", "It is 7", "") if enough(0, text)] == []
    assert enough(0, "It is Paris.")
    assert enough(0, "7 of")


def test_a_fact_is_told_by_one_of_its_answers_as_words_of_their_own():
    fact = Fact("?", ("Paris", "New York", "1066", "C++"))
    telling = ("It is Paris.", "PARIS", "In new york, of course.", "1066 it was", "C++!")
    assert [text for text in telling if not fact.told_by(text)] == []
    assert [text for text in ("Parisian food", "It is New  York", "10666", "") if fact.told_by(text)] == []
