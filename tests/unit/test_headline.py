"""The order of the headline, its thresholds, and what it says."""

import math

import pytest

from steer_heal.config import FOUNDATIONS, HealThresholds
from steer_heal.heal.headline import ORDER, judge
from steer_heal.records import Controls

TARGET = {"Care": 1, "SocialNorms": -1}


def stage(
    care=0.2,
    norms=0.7,
    loyalty=0.02,
    mass=1.0,
    perplexity=1.3,
    looping=0.0,
    relevance=1.0,
    n=None,
    varied=0.75,
):
    p = dict.fromkeys(FOUNDATIONS, 0.02) | {"Care": care, "SocialNorms": norms, "Loyalty": loyalty}
    text = {"perplexity": perplexity, "looping": looping, "relevance": relevance, "diversity": varied}
    return {"p": p, "coherence": mass, "text": text | {"n_answers": n}}


def random_moves(care):
    base = stage()["p"]
    return None if care is None else Controls(base, (base | {"Care": care},), None, (1.0,))


def word(retention=0.9, thresholds=None, silent=False, random=None, facts=0.95, far=0.15, **healed):
    said = judge(
        stage() | {"cannot_answer": silent},
        stage(**{"care": 0.7, "norms": 0.2, **healed}),
        TARGET,
        retention,
        *([thresholds] if thresholds else []),
        controls=random_moves(random),
        cost={"facts_kept": facts, "neutral_kl": far},
    )
    assert said.why
    return said.word


@pytest.mark.parametrize(
    ("healed", "wanted"),
    [
        ({}, "healed"),
        ({"looping": 0.03}, "kept but costly"),
        ({"looping": 1 / 12, "n": 12}, "healed"),
        ({"looping": 2 / 12, "n": 12}, "kept but costly"),
        ({"looping": 4 / 12, "n": 12}, "collapsed"),
        ({"looping": 0.05, "n": 100}, "healed"),
        ({"looping": 0.06, "n": 100}, "kept but costly"),
        ({"perplexity": 1.9}, "healed"),
        ({"perplexity": 2.0}, "kept but costly"),
        ({"care": 0.1, "norms": 0.8}, "not specific"),
        ({"relevance": 0.5}, "kept but costly"),
        ({"varied": 0.61}, "healed"),
        ({"varied": 0.59}, "kept but costly"),
        ({"varied": None}, "healed"),
        ({"facts": 0.9}, "kept but costly"),
        ({"far": 0.2}, "kept but costly"),
        ({"facts": None, "far": None}, "healed"),
        ({"relevance": 0.2}, "collapsed"),
        ({"relevance": None}, "healed"),
        ({"retention": 0.49}, "too little trait kept"),
        ({"retention": None}, "too little trait kept"),
        ({"retention": 0.0}, "too little trait kept"),
        ({"mass": 0.84}, "collapsed"),
        ({"looping": 0.2}, "collapsed"),
        ({"perplexity": 5.0}, "collapsed"),
        ({"perplexity": math.nan}, "collapsed"),
        ({"mass": math.inf}, "collapsed"),
    ],
)
def test_each_word_has_its_cause(healed, wanted):
    assert word(**healed) == wanted


def test_the_first_cause_in_the_order_wins():
    faults = [
        ("healed", {}),
        ("kept but costly", {"mass": 0.94}),
        ("not specific", {"loyalty": 0.6}),
        ("no better than random", {"random": 2.0}),
        ("too little trait kept", {"retention": 0.1}),
        ("moved the other way", {"retention": -0.1}),
        ("cannot answer", {"silent": True}),
        ("collapsed", {"looping": 0.5}),
    ]
    assert [name for name, _ in faults] == list(reversed(ORDER))
    together = {}
    for wanted, fault in faults:
        together |= fault
        assert word(**together) == wanted


def test_what_a_target_without_room_cannot_give_may_come_from_elsewhere():
    fair = {"Fairness": 1, "Loyalty": -1}

    def said(loyalty, **moved):
        before, after = stage(loyalty=loyalty), stage(loyalty=0.0)
        after["p"] |= moved
        return judge(before, after, fair, 0.9).word

    assert said(0.02, Fairness=0.4, SocialNorms=0.3) == "healed"
    assert said(0.02, Fairness=0.2, Care=0.6) == "not specific", "a rise is no excuse"
    assert said(0.2, Fairness=0.4, SocialNorms=0.3) == "not specific", "there was room in Loyalty"


def test_the_thresholds_go_with_it_and_decide():
    said = judge(stage(), stage(care=0.7, norms=0.2), TARGET, 0.9)
    assert said.thresholds == HealThresholds().model_dump()
    assert said.sentence().startswith("healed: retention 0.90")
    assert "base's own" in said.why
    assert word(retention=0.9, thresholds=HealThresholds(retention_kept=0.95)) == "too little trait kept"


def test_of_a_model_that_cannot_answer_the_text_alone_is_judged():
    base = stage() | {"cannot_answer": True}
    said = judge(base, stage(mass=0.1, loyalty=0.9), TARGET, None)
    assert said.word == "cannot answer"
    assert said.why.startswith(
        "this model cannot answer this question; by its text alone: 0% of its sampled answers loop"
    )
    assert judge(base, stage(looping=0.5), TARGET, None).word == "collapsed"


def test_what_base_loops_itself_is_no_cost():
    base, healed = stage(looping=0.04), {"care": 0.7, "norms": 0.2}
    assert judge(base, stage(looping=0.04, **healed), TARGET, 0.9).word == "healed"
    said = judge(base, stage(looping=0.05, **healed), TARGET, 0.9)
    assert said.word == "kept but costly"
    assert said.why.endswith("5% of its sampled answers loop, above 4%")


def test_a_headline_counts_the_printed_answers_that_loop():
    said = judge(stage(), stage(care=0.7, norms=0.2), TARGET, 0.9)
    loop = "I'm not sure what to do. " * 4
    assert said.counting(["Yes."], [loop]) == said
    counted = said.counting([loop, "Yes.", loop], ["Yes.", loop, "No."])
    assert counted.word == said.word
    assert counted.why == f"{said.why}; 2 of its 3 printed answers loop, 1 of base's own"


def test_a_cloze_has_no_answer_mass_to_lose():
    base, healed = stage(mass=None), stage(care=0.7, norms=0.2, mass=None)
    assert judge(base, healed, TARGET, 0.9).word == "healed"
    assert (
        judge(base, healed | {"text": {"perplexity": 9.0, "looping": 0.0}}, TARGET, 0.9).word == "collapsed"
    )
