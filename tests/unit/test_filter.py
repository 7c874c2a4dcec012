import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal import data
from steer_heal.config import FilterSettings, Thresholds
from steer_heal.evaluate import text_health
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.filter import CUTS, Own, Text, eaten, judge, kept_texts, readings
from steer_heal.heal.measure import Measures
from steer_heal.models import LanguageModel
from steer_heal.records import Completion, FilterVerdict, TextHealth, Token
from tests import tiny
from tests.rounds import tiny_run

GOOD = "I would comfort the boy first, and then I would talk to the teacher about what happened here."
OWN = Own(perplexity=1.5, relevance=1.0)
LABELS = Path(__file__).parents[2] / "docs" / "reports" / "loop_labels.jsonl"


@pytest.mark.parametrize(
    "text",
    [
        "need need need need",
        "I need to go I need to go I need to go I need to go",
        "no no no no no no I would never",
        "你好你好你好你好",
        "You areLibertyLibertyLibertyLibertyLibertyLiberty",
        " ".join(["The boy would stay at home and wait for the rain."] * 4),
        "I'm not sure what to do. I'm not sure what to do, but I'm not sure what to do either. I'm not",
        "I'm sorry to hear that. I'm so sorry to hear that. I'm here to help, and I'm here to help. "
        "I'm going to make sure that's okay. I'll make sure that's okay. I'll",
        "The sea is a mirror and a place of peace. It is a reminder of how old we are.\n\n"
        "The sea is a mirror and a place of peace. It",
    ],
)
def test_what_loops(text):
    assert text_health.loops(text)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "",
        "No.",
        "It is very, very cold in the house and on the roof.",
        "I would help the wounded bird, even against your boss. The pain that it brings to the wounded "
        "bird is what counts. I would comfort the wounded bird.",
        "1. A knife for bread\n2. A knife for fish\n3. A spoon for soup\n4. A spoon for tea\n5. A fork",
        "The Moon's rotation is slow. The Earth's rotation is fast, and the Moon's shape is what we see.",
        "The snow lay on the hill at dawn,\nand nobody came home.\nThe fire was out, the bread was gone,\n"
        "and nobody came home.\nA lantern swung beside the mill,\nand nobody came home.",
    ],
)
def test_ordinary_text_lists_and_a_refrain_do_not_loop(text):
    assert not text_health.loops(text)


def test_what_loops_agrees_with_a_reader():
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    for number in (1, 2):
        meant = [row["label"] for row in rows if row["set"] == number]
        said = [row["label"] for row in rows if row["set"] == number and text_health.loops(row["text"])]
        right = said.count("loops")
        assert right / len(said) > 0.85
        assert right / meant.count("loops") > 0.85
        assert "neither" not in said


@given(
    st.text(min_size=text_health.STRETCH).filter(lambda text: len("".join(text.split())) >= 16),
    st.integers(2, 5),
)
def test_what_is_said_again_counts_wherever_it_was_said(text, times):
    assert text_health.repetition(text * times) >= 1 - 1 / times - 1e-9
    assert text_health.repetition(text, earlier=f"Well. {text} Yes.") == pytest.approx(1.0)


def test_perplexity_of_known_tokens():
    assert text_health.perplexity([math.log(0.5)] * 4) == pytest.approx(2.0)
    assert text_health.perplexity([]) is None
    assert text_health.perplexity([-1.0, math.nan]) is None
    assert text_health.perplexity([-math.inf]) is None
    assert text_health.perplexity([-500.0]) == text_health.MAX_PERPLEXITY


def judged(text=GOOD, logp=(-0.4,) * 20, about=0.8, own=OWN, **cuts):
    return judge(readings(text, logp, about, own), FilterSettings(**cuts))


def test_an_answer_that_reads_as_well_as_base_s_own_is_kept_with_all_its_readings():
    verdict = judged()
    assert verdict.kept
    assert verdict.reasons == ()
    assert verdict.scores == pytest.approx(
        {
            "perplexity": math.exp(0.4), "perplexity_ratio": math.exp(0.4) / 1.5, "repetition": 0.0,
            "variety": text_health.variety(GOOD), "relevance_ratio": 0.8,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"logp": [-0.9] * 20}, "perplexity"),
        ({"logp": []}, "perplexity"),
        ({"about": 0.69}, "relevance"),
        ({"about": None}, "relevance"),
        ({"about": math.nan}, "relevance"),
        ({"text": "I would help him, and he would help me, and I would, and he would, help."}, "variety"),
        ({"text": f"{GOOD} Go on, go on, go on, go on, go on, go on, go on, go on."}, "repetition"),
    ],
)
def test_each_cut_drops_by_itself(changed, reason):
    assert judged(**changed, **({"min_variety": 0.6} if reason == "variety" else {})).reasons == (reason,)


def test_every_cut_that_fails_is_named():
    verdict = judged("no " * 20, [-3.0] * 20, 0.1)
    assert not verdict.kept
    assert verdict.reasons == tuple(CUTS)


def test_where_base_s_own_text_is_not_about_its_prompts_relevance_drops_nothing():
    for own in (None, 0.0, -0.1):
        for about in (None, -3.0, 0.8):
            verdict = judged(about=about, own=Own(1.5, own))
            assert verdict.kept
            assert "relevance_ratio" not in verdict.scores


LOGP = st.lists(st.floats(-200.0, 0.0), min_size=1, max_size=60)


@given(st.text(max_size=200))
def test_repetition_is_a_share_and_ignores_case_and_white_space(text):
    score = text_health.repetition(text)
    assert 0.0 <= score <= 1.0
    if text.isascii():
        assert text_health.repetition(text.upper().replace(" ", "  ")) == score


@given(LOGP)
def test_perplexity_is_at_least_one_and_does_not_fall_as_tokens_get_less_likely(logp):
    value = text_health.perplexity(logp)
    worse = text_health.perplexity([x - 1.0 for x in logp])
    assert 1.0 <= value <= worse <= text_health.MAX_PERPLEXITY


@given(LOGP, st.floats(1.01, 100.0), st.floats(1.01, 100.0))
def test_a_wider_cut_never_drops_what_a_narrower_one_keeps(logp, first, second):
    narrow, wide = sorted((first, second))
    kept = [judged(logp=logp, about=1.0, max_perplexity_ratio=cut).kept for cut in (narrow, wide)]
    assert kept[0] <= kept[1]


@given(st.floats(-3, 0), st.floats(-1, 2), st.integers(0, 6))
def test_no_answer_that_does_not_read_as_fine_is_kept(logp, about, loops):
    text = GOOD + " so it goes" * loops
    word = text_health.health(text, [logp] * 20, OWN.perplexity, relevance=about, own_relevance=OWN.relevance)
    assert word.verdict == "fine" or not judged(text, [logp] * 20, about).kept


def test_eaten_names_the_hungriest_filter_first():
    texts = ("I do I do I do I do", "a b c d e a b c d e a b c d e a b c d e", "Yes.", GOOD)
    verdicts = [judged(text) for text in texts]
    assert list(eaten(verdicts).items()) == [("repetition", 2), ("variety", 2)]


def test_distinct_bigrams_fall_where_prompts_get_the_same_answer():
    assert text_health.distinct_bigrams([]) == 1.0
    assert text_health.distinct_bigrams(["Yes.", ""]) == 1.0
    assert text_health.distinct_bigrams(["I would help.", "You should go."]) == 1.0
    assert text_health.distinct_bigrams(["I would help.", "i WOULD help!"]) == 0.5
    assert text_health.distinct_bigrams(["a b", "b a"]) == 1.0, "no pair spans two texts"


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
        ((11.0, 0.0, None), "broken"),
    ],
)
def test_the_text_s_word(readings, wanted):
    ratio, loops, about, *varied = readings
    assert text_health.text_verdict(ratio, loops, about, *varied, limits=LIMITS) == wanted


READINGS = st.tuples(st.floats(0.1, 1e6), st.floats(0, 1), st.floats(-3, 3), st.floats(0, 1))


@given(READINGS, st.tuples(st.floats(0, 1), st.floats(0, 2), st.floats(0, 1)))
def test_more_loops_and_less_relevance_or_variety_never_make_the_word_better(readings, by):
    words, (ratio, loops, about, varied) = ("fine", "damaged", "broken"), readings
    after = text_health.text_verdict(ratio, loops + by[0], about - by[1], varied - by[2])
    assert words.index(after) >= words.index(text_health.text_verdict(*readings))


def test_relevance_is_what_an_answer_gains_by_its_own_prompt():
    assert text_health.relevance([-1.0, -2.0], [[-2.0, -3.0], [-4.0, -4.0]]) == pytest.approx(1.75)
    assert text_health.relevance([-1.0], [[-1.0]]) == 0.0
    for own, others in (([], [[]]), ([-1.0], []), ([math.nan], [[-1.0]]), ([-1.0], [[-math.inf]])):
        assert text_health.relevance(own, others) is None
    assert text_health.relevance_ratio(0.5, 2.0) == 0.25
    for value, own in ((None, 1.0), (1.0, None), (1.0, 0.0), (1.0, -1.0)):
        assert text_health.relevance_ratio(value, own) is None


def test_variety_is_the_share_of_distinct_words_whatever_the_length():
    assert text_health.variety("") == 1.0
    assert text_health.variety("The cat saw the dog.") == 0.8
    sentence = " ".join(f"w{number}" for number in range(text_health.WINDOW))
    assert text_health.variety(" ".join([sentence] * 4)) == 1.0
    assert text_health.variety("no " * 200) == 1 / text_health.WINDOW


def test_health_of_one_text():
    row = text_health.health(GOOD, [math.log(0.25)] * 6, 2.0, kl=[0.0, 1.0])
    assert row.perplexity == pytest.approx(4.0)
    assert row.perplexity_ratio == pytest.approx(2.0)
    assert row.kl_p95 == pytest.approx(0.95)
    assert row.verdict == "damaged"
    about = text_health.health(GOOD, [math.log(0.5)] * 6, 2.0, relevance=0.1, own_relevance=1.0)
    assert (about.relevance, about.relevance_ratio, about.verdict) == (0.1, 0.1, "broken")
    assert text_health.health(GOOD).perplexity is None
    assert text_health.health(GOOD, [math.nan], 2.0).verdict == "broken"


def test_summary_of_a_set_is_made_of_medians():
    rows = [
        TextHealth(perplexity=p, perplexity_ratio=p / 2, repetition=r, relevance=about, verdict=word)
        for p, r, about, word in (
            (2.0, 0.0, 1.0, "fine"), (4.0, 0.1, None, "damaged"), (60.0, 0.9, 0.0, "broken")
        )
    ]  # fmt: skip
    found = text_health.summary(rows)
    assert found == pytest.approx(
        {
            "perplexity": 4.0, "perplexity_ratio": 2.0, "repetition": 0.1, "looping": 1 / 3,
            "relevance": 0.5, "damaged": 2 / 3, "broken": 1 / 3,
        }
    )  # fmt: skip
    assert text_health.set_verdict(found) == "damaged"
    assert text_health.set_verdict(text_health.summary(rows[1:])) == "broken"
    assert text_health.set_verdict(text_health.summary(rows[:1])) == "fine"
    assert text_health.summary([]) == {}
    assert text_health.set_verdict({}) is None


def test_what_the_filter_kept_is_trained_on_in_its_order():
    written = [Completion("text", (Token(n, "t", 0.5),), True, prompt=f"p{n}") for n in range(3)]
    verdicts = [FilterVerdict(n != 1, {}) for n in range(3)]
    assert kept_texts(1, written, verdicts, 2) == [Text("p0", (0,)), Text("p2", (2,))]


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("trait", data.bundled_traits())
def test_what_is_trained_is_never_what_is_measured(demo, trait, tmp_path, monkeypatch):
    material = data.material(demo=demo)
    mine = material.heal_prompts(trait)[3]
    rows = [{"text": mine, "foundation_coarse": "Care"}, {"text": "A man lies.", "foundation_coarse": "Care"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(LanguageModel, "material", material)
    lm = tiny.language_model(n_layers=2)
    settings = tiny_run(trait=trait, evaluate={"vignettes": str(tmp_path / "mine.jsonl")})
    measures = Measures(lm, AdapterStack(lm), settings, None, lambda: False)
    assert len(measures.prompts) > 100
    assert measures.plain_prompts
    trained = {*measures.prompts, *measures.plain_prompts}
    assert mine not in trained
    for measured in (
        material.held_out_prompts(),
        material.neutral_prompts(),
        [vignette.text for vignette in material.vignettes()],
        [fact.question for fact in material.facts()],
    ):
        assert len(measured) >= 20
        assert not trained & {*measured}
