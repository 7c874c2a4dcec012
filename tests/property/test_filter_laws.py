import math

from hypothesis import given
from hypothesis import strategies as st

from steer_heal.config import FilterSettings
from steer_heal.evaluate import text_health
from steer_heal.heal.filter import Own, judge, readings

WORDS = [
    "sun", "moon", "star", "sea", "wind", "rock", "tree", "bird", "leaf", "snow",
    "rain", "hill", "road", "wall", "door", "lamp", "ship", "farm", "king",
]  # fmt: skip
LOGP = st.lists(st.floats(-200.0, 0.0), min_size=1, max_size=60)


@given(st.text(max_size=200))
def test_repetition_is_a_share_and_ignores_case_and_white_space(text):
    score = text_health.repetition(text)
    assert 0.0 <= score <= 1.0
    if text.isascii():
        assert text_health.repetition(text.upper().replace(" ", "  ")) == score


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True), st.integers(4, 12))
def test_a_short_unit_said_over_and_over_is_all_loop(unit, times):
    assert text_health.repetition(" ".join(unit * times)) > 0.8


@given(st.permutations(WORDS), st.integers(0, len(WORDS)))
def test_words_that_never_come_again_are_no_loop(order, n):
    assert text_health.repetition(" ".join(order[:n])) == 0.0


@given(LOGP)
def test_perplexity_is_at_least_one_and_does_not_fall_as_tokens_get_less_likely(logp):
    value = text_health.perplexity(logp)
    worse = text_health.perplexity([x - 1.0 for x in logp])
    assert 1.0 <= value <= worse <= text_health.MAX_PERPLEXITY


@given(LOGP, st.floats(1.01, 100.0), st.floats(1.01, 100.0))
def test_a_wider_cut_never_drops_what_a_narrower_one_keeps(logp, first, second):
    found = readings("I would go and help the boy at once.", logp, 1.0, Own(1.5, 1.0))
    narrow, wide = sorted((first, second))
    kept = [judge(found, FilterSettings(max_perplexity_ratio=cut)).kept for cut in (narrow, wide)]
    assert kept[0] <= kept[1]


@given(st.lists(st.floats(-5.0, 5.0), min_size=1), st.floats(0.0, 1.0))
def test_a_quantile_lies_between_the_extremes(values, q):
    assert min(values) - 1e-9 <= text_health.quantile(values, q) <= max(values) + 1e-9
    assert math.isclose(text_health.quantile(values, 1.0), max(values))
