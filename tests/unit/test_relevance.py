"""Relevance: with the other prompts read once, as from whole rows; which prompts serve as the others."""

from statistics import fmean

import pytest

from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import OTHERS, relevances
from steer_heal.models import user
from steer_heal.records import Stopped
from tests import tiny
from tests.close import assert_near, model_rounding, nats

ASKED = ["Hello there.", "What is it?", "Who, and why?", "Where do they go in the rain?", "One more."]


@pytest.mark.parametrize("arch", tiny.ARCHS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_it_is_that_of_whole_rows_after_each_other_prompt(arch, n):
    lm = tiny.shared(arch)
    prompts = [lm.encode_chat([user(text)]) for text in ASKED[:n]]
    ids = [[40 + number, 41, 77, 42][: 2 + number] for number in range(n)]
    candidates = [lm.encode_chat([user(text)]) for text in OTHERS]
    prompts[0] = candidates[1]
    own = text_logp(lm, prompts, ids)
    for prompt, text, logp, found in zip(prompts, ids, own, relevances(lm, prompts, ids, own), strict=True):
        others = [other for other in candidates if other != prompt]
        assert len(others) == len(OTHERS) - (prompt in candidates)
        rows = text_logp(lm, others, [text] * len(others))
        wanted = fmean(logp) - fmean(map(fmean, rows))
        assert_near(found, wanted, model_rounding(lm), nats(lm, prompt))


def test_an_empty_answer_has_none_and_it_can_be_stopped():
    lm = tiny.shared()
    prompts = [lm.encode_chat([user(text)]) for text in ASKED[:2]]
    own = text_logp(lm, prompts, [[], [40]])
    told: list[int] = []
    assert relevances(lm, prompts, [[], [40]], own, progress=told.append)[0] is None
    assert told == [1, 3]
    assert relevances(lm, [], [], []) == []
    with pytest.raises(Stopped):
        relevances(lm, prompts, [[], [40]], own, stop=lambda: True)
