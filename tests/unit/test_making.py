"""What a round's completions must be to be trained on; earlier texts come again."""

import pytest

from steer_heal import models
from steer_heal.adapters import AdapterStack
from steer_heal.config import CalibrateSettings, DataSettings, HealSettings, TrainSettings
from steer_heal.loop.carrying import of_round, push, within_reach
from steer_heal.loop.making import Maker, Replay, Text
from steer_heal.loop.measure import Measures
from steer_heal.records import Completion, Event, FilterVerdict, RoundFailed, Token
from tests import tiny


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_nothing_is_trained_on_what_is_held_out(name):
    lm = models.load("demo") if name == "demo" else tiny.shared()
    measures = Measures(lm, AdapterStack(lm), HealSettings(model="tiny"), None, stop=lambda: False)
    assert measures.held_prompts == lm.material.held_out_prompts()
    assert not set(measures.prompts) & {*lm.material.held_out_prompts(), *lm.material.neutral_prompts()}
    assert len(measures.prompts) >= 300


def completion(*ids):
    return Completion("text", tuple(Token(token, "t", 0.5) for token in ids), True, prompt="p")


def maker():
    return Maker(None, DataSettings(min_kept=2), seed=0, stop=lambda: False)  # pyright: ignore[reportArgumentType]


KEPT = FilterVerdict(True, {})
LONG, LOOP = FilterVerdict(False, {}, ("perplexity", "repetition")), FilterVerdict(False, {}, ("repetition",))


def test_the_kept_ones_are_trained_on():
    rows = [completion(1, 2), completion(3), completion(4)]
    assert maker().enough(1, rows, [KEPT, LOOP, KEPT]) == [Text("p", (1, 2)), Text("p", (4,))]


def test_too_few_say_what_ate_the_others():
    rows = [completion(index) for index in range(4)]
    with pytest.raises(RoundFailed, match=r"Round 3 starved: .* kept 1 of 4 .* repetition 3, perplexity 1"):
        maker().enough(3, rows, [KEPT, LONG, LOOP, LOOP])
    with pytest.raises(RoundFailed, match="kept 0 of 0"):
        maker().enough(3, [], [])


def test_identical_ones_teach_nothing():
    with pytest.raises(RoundFailed, match="all 3 kept completions are the same"):
        maker().enough(1, [completion(1, 2)] * 3, [KEPT] * 3)


def test_replay_draws_the_same_for_the_same_seed_and_recalls_kept_ones_from_the_log():
    replay = Replay()
    assert replay.draw(5, 0) == []
    own = [Text("mine", (index,)) for index in range(4)]
    assert set(replay.draw(2, 0, own)) < set(own)
    replay.add(Text("p", (index,)) for index in range(10))
    assert replay.draw(4, 1) == replay.draw(4, 1) != replay.draw(4, 2)
    assert len(set(replay.draw(99, 1))) == 10
    assert not set(replay.draw(10, 1, own)) & set(own)
    again = Replay()
    for data in ({"kept": True, "prompt": "q", "ids": [7, 8]}, {"kept": False, "prompt": "q"}):
        again.recall(Event(0, 0.0, "completion", 1, data))
    assert again.draw(9, 0) == [Text("q", (7, 8))]


def test_what_falls_or_grows_from_round_to_round():
    falling = {"lr_decay": 0.5, "distil_later": 0.25, "distil": 3.0, "distil_fade": 0.5}
    settings = TrainSettings(lam=0.5, lam_growth=2.0, lr=1e-3, distil_alpha=1.0, **falling)
    assert of_round(settings, 1) == settings
    third = of_round(settings, 3)
    assert (third.lam, third.lr, third.distil_alpha, third.distil) == (2.0, 2.5e-4, 0.25, 1.5)


def test_the_push_goes_with_the_dose_of_the_text_down_to_its_least():
    settings = TrainSettings(distil_alpha=2.0, distil_least=0.25)
    assert [push(settings, scale) for scale in (1.0, 0.5, 0.25, 0.1, 0.0)] == [2.0, 1.0, 0.5, 0.5, 0.5]


def test_a_later_round_s_c_star_is_sought_near_the_first():
    settings = CalibrateSettings(bracket=(0.1, 1024.0))
    assert within_reach(settings, 0.0) == settings
    assert within_reach(settings, 10.0).bracket == (0.1, 40.0)
    assert within_reach(settings, 1000.0).bracket == (0.1, 1024.0)
