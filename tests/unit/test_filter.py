import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.filter_check import labels, table
from steer_heal import filter as filters
from steer_heal.config import FilterSettings, Thresholds
from steer_heal.records import FilterVerdict, TextHealth

GOOD = "I would comfort the boy first, and then I would talk to the teacher about what happened here."
OWN = filters.Norms(perplexity=1.5, tail=2.0)


@pytest.mark.parametrize(
    "text",
    [
        "need need need need",
        "ababababab",
        "I need to go I need to go I need to go I need to go",
        "no no no no no no I would never",
        "hahahahahahaha",
        "The cat. The cat. The cat. The cat.",
        "你好你好你好你好",
        "You areLibertyLibertyLibertyLibertyLibertyLiberty",
        "Well, a cam and and and and and and and and and and and",
        " ".join(["The boy would stay at home and wait for the rain."] * 4),
    ],
)
def test_loops_score_above_the_threshold(text):
    assert filters.repetition(text) > Thresholds().repetition_broken


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "",
        "No.",
        "It is very, very cold in the house and on the roof.",
        "A banana is sweet.",
        "I would help the wounded bird, even against your boss. The pain that it brings to the wounded "
        "bird is what counts. I would comfort the wounded bird.",
        "I think the boy should stop. I think the boy should say sorry to the girl and her friend.",
        "You hit a lonely pupil. That is cruel, and the pupil is hurt. Say sorry to the pupil and mend it.",
    ],
)
def test_ordinary_text_scores_low(text):
    assert filters.repetition(text) < 0.25


def test_perplexity_of_known_tokens():
    assert filters.perplexity([math.log(0.5)] * 4) == pytest.approx(2.0)
    assert filters.perplexity([]) is None
    assert filters.perplexity([-1.0, math.nan]) is None
    assert filters.perplexity([-math.inf]) is None
    assert filters.perplexity([-500.0]) == filters.MAX_PERPLEXITY


def test_the_tail_is_the_last_quarter_rounded_up():
    assert filters.tail([1, 2, 3, 4, 5, 6, 7, 8, 9]) == [7, 8, 9]
    assert filters.tail([1]) == [1]
    assert filters.tail([]) == []


def test_norms_are_medians_of_what_base_wrote():
    own = filters.norms([[math.log(0.5)] * 4, [math.log(0.25)] * 4, [math.log(0.1)] * 4, []])
    assert own.perplexity == pytest.approx(4.0)
    assert own.tail == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no text"):
        filters.norms([[]])


def test_a_good_completion_is_kept_with_all_its_scores():
    verdict = filters.judge(filters.scores(GOOD, [math.log(0.6)] * 20, OWN), FilterSettings())
    assert verdict.kept
    assert verdict.reasons == ()
    assert {"perplexity", "perplexity_ratio", "tail_ratio", "repetition", "words"} <= set(verdict.scores)


def test_every_cut_that_fails_is_named():
    text = "need need need"
    logp = [math.log(0.5)] * 3 + [math.log(0.001)]
    verdict = filters.judge(filters.scores(text, logp, OWN), FilterSettings(max_perplexity_ratio=2.0))
    assert not verdict.kept
    assert set(verdict.reasons) == {"perplexity", "last quarter", "repetition", "too short"}


def test_text_that_base_finds_likely_when_told_the_persona_is_coherent():
    unlikely, likely, told = [-2.0] * 20, [-0.3] * 20, filters.Norms(1.2, 1.2)
    alone = filters.judge(filters.scores(GOOD, unlikely, OWN), FilterSettings())
    assert alone.reasons == ("perplexity", "last quarter")
    heard = filters.judge(filters.scores(GOOD, unlikely, OWN, (likely, told)), FilterSettings())
    assert heard.kept
    assert not filters.judge(heard.scores, FilterSettings(persona=False)).kept
    assert heard.scores["told_ratio"] == pytest.approx(math.exp(0.3) / 1.2)
    assert heard.scores["perplexity_ratio"] == alone.scores["perplexity_ratio"]
    lost = filters.scores(GOOD, unlikely, OWN, ([math.nan], told))
    assert not filters.judge(lost, FilterSettings()).kept


@pytest.mark.parametrize("logp", [[], [math.nan] * 5])
def test_text_that_cannot_be_scored_is_dropped(logp):
    verdict = filters.judge(filters.scores(GOOD, logp, OWN), FilterSettings())
    assert not verdict.kept
    assert "perplexity" in verdict.reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("As an AI language model I have no view on that.", "boilerplate"),
        ("I'm sorry, but I can't help with that request.", "boilerplate"),
        ("As someone who looks after others, I would step in.", "narration"),
        ("I am a person who always defers to the boss, so yes.", "narration"),
    ],
)
def test_boilerplate_and_narration_are_dropped(text, reason):
    verdict = filters.judge(filters.scores(text, [math.log(0.6)] * 9, OWN), FilterSettings())
    assert verdict.reasons == (reason,)


def test_eaten_names_the_hungriest_filter_first():
    verdicts = [
        filters.judge(filters.scores(text, [math.log(0.6)] * 9, OWN), FilterSettings())
        for text in ("no no no no", "a b c d e a b c d e a b c d e", "Yes.", "No.", GOOD)
    ]
    assert list(filters.eaten(verdicts).items()) == [("repetition", 2), ("too short", 2)]


LIMITS = Thresholds(
    perplexity_damaged=2.0, perplexity_broken=10.0, relevance_damaged=0.6, relevance_broken=0.25,
    variety_broken=0.5, repetition_broken=0.3,
)  # fmt: skip


@pytest.mark.parametrize(
    ("readings", "wanted"),
    [
        ((None, 0.0, None), "fine"),
        ((2.0, 0.3, 0.6, 0.5), "fine"),
        ((5.0, 0.0, 1.0), "damaged"),
        ((1.0, 0.0, 0.5), "damaged"),
        ((10.0, 0.0, 0.25, 0.5), "damaged"),
        ((1.0, 0.0, 0.1, 0.9), "broken"),
        ((1.0, 0.4, 1.0), "broken"),
        ((11.0, 0.0, 1.0), "broken"),
        ((1.0, 0.0, 1.0, 0.4), "broken"),
        ((1.0, 0.0, -0.1), "broken"),
        ((11.0, 0.0, None), "broken"),
    ],
)
def test_the_text_s_word(readings, wanted):
    ratio, loops, about, *varied = readings
    assert filters.text_verdict(ratio, loops, about, *varied, limits=LIMITS) == wanted


READINGS = st.tuples(st.floats(0.1, 1e6), st.floats(0, 1), st.floats(-3, 3), st.floats(0, 1))


@given(READINGS, st.tuples(st.floats(0, 1), st.floats(0, 2), st.floats(0, 1)))
def test_more_loops_and_less_relevance_or_variety_never_make_the_word_better(readings, by):
    words, (ratio, loops, about, varied) = ("fine", "damaged", "broken"), readings
    after = filters.text_verdict(ratio, loops + by[0], about - by[1], varied - by[2])
    assert words.index(after) >= words.index(filters.text_verdict(*readings))


def test_relevance_is_what_an_answer_gains_by_its_own_prompt():
    assert filters.relevance([-1.0, -2.0], [[-2.0, -3.0], [-4.0, -4.0]]) == pytest.approx(1.75)
    assert filters.relevance([-1.0], [[-1.0]]) == 0.0
    for own, others in (([], [[]]), ([-1.0], []), ([math.nan], [[-1.0]]), ([-1.0], [[-math.inf]])):
        assert filters.relevance(own, others) is None
    assert filters.relevance_ratio(0.5, 2.0) == 0.25
    for value, own in ((None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -1.0)):
        assert filters.relevance_ratio(value, own) is None


def test_variety_is_the_share_of_distinct_words_whatever_the_length():
    assert filters.variety("") == 1.0
    assert filters.variety("The cat saw the dog.") == 0.8
    sentence = " ".join(f"w{number}" for number in range(filters.WINDOW))
    assert filters.variety(" ".join([sentence] * 4)) == 1.0
    assert filters.variety("no " * 200) == 1 / filters.WINDOW


def test_health_of_one_text():
    row = filters.health(GOOD, [math.log(0.25)] * 6, 2.0, kl=[0.0, 1.0])
    assert row.perplexity == pytest.approx(4.0)
    assert row.perplexity_ratio == pytest.approx(2.0)
    assert row.kl_p95 == pytest.approx(0.95)
    assert row.verdict == "damaged"
    about = filters.health(GOOD, [math.log(0.5)] * 6, 2.0, relevance=0.1, own_relevance=1.0)
    assert (about.relevance, about.relevance_ratio, about.verdict) == (0.1, 0.1, "broken")
    assert filters.health(GOOD).perplexity is None
    assert filters.health(GOOD, [math.nan], 2.0).verdict == "broken"


def test_summary_of_a_set_is_made_of_medians():
    rows = [
        TextHealth(perplexity=p, perplexity_ratio=p / 2, repetition=r, relevance=about, verdict=word)
        for p, r, about, word in (
            (2.0, 0.0, 1.0, "fine"), (4.0, 0.1, None, "damaged"), (60.0, 0.9, 0.0, "broken")
        )
    ]  # fmt: skip
    found = filters.summary(rows)
    assert found == pytest.approx(
        {
            "perplexity": 4.0, "perplexity_ratio": 2.0, "repetition": 0.1, "looping": 1 / 3,
            "relevance": 0.5, "damaged": 2 / 3, "broken": 1 / 3,
        }
    )  # fmt: skip
    assert filters.set_verdict(found) == "damaged"
    assert filters.set_verdict(filters.summary(rows[1:])) == "broken"
    assert filters.set_verdict(filters.summary(rows[:1])) == "fine"
    assert filters.summary([]) == {}
    assert filters.set_verdict({}) is None


def test_the_usual_cuts_agree_with_texts_labelled_by_reading():
    alone, told = (
        {
            name: (precision or 0.0, recall or 0.0)
            for name, _, _, precision, recall in table(FilterSettings(persona=persona))
        }
        for persona in (False, True)
    )
    assert len(labels()) >= 60
    assert min(*alone["verdict"], *told["verdict"]) >= 0.85
    assert told["repetition"][0] >= 0.8
    for reason in ("narration", "boilerplate"):
        assert told[reason][0] == alone[reason][0] == 1.0, reason
    assert statistics.harmonic_mean(told["verdict"]) > statistics.harmonic_mean(alone["verdict"])


def test_of_a_prompts_coherent_answers_those_with_most_trait_stay():
    rows = [
        FilterVerdict(kept, {"lift": lift}, () if kept else ("perplexity",))
        for kept, lift in ((True, 0.1), (False, 9.0), (True, 0.3), (True, -0.2), (True, 0.2))
    ]
    found = filters.with_most_trait(rows, "ppppq", 0.5)
    assert [row.kept for row in found] == [True, False, True, False, True]
    assert [row.reasons for row in found] == [(), ("perplexity",), (), (filters.LESS_TRAIT,), ()]
    assert [row.kept for row in filters.with_most_trait(rows, "ppppq", 0.25)] == [
        False, False, True, False, True,
    ]  # fmt: skip
    assert filters.with_most_trait(rows, "ppppq", 1.0) == rows
    assert filters.with_most_trait([], "", 0.5) == []


def test_lift_is_how_much_likelier_the_persona_makes_a_text():
    told = ([math.log(0.9)] * 20, OWN)
    found = filters.scores(GOOD, [math.log(0.6)] * 20, OWN, told)
    assert found["lift"] == pytest.approx(math.log(1.5))
    assert filters.scores("", [], OWN, ([], OWN))["lift"] == -math.inf
