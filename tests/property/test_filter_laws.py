from hypothesis import given
from hypothesis import strategies as st

from steer_heal.config import FilterSettings
from steer_heal.evaluate import text_health
from steer_heal.heal.filter import Own, judge, readings

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
    found = readings("I would go and help the boy at once.", logp, 1.0, Own(1.5, 1.0))
    narrow, wide = sorted((first, second))
    kept = [judge(found, FilterSettings(max_perplexity_ratio=cut)).kept for cut in (narrow, wide)]
    assert kept[0] <= kept[1]
