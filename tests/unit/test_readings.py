"""Against numbers worked out by hand; tests/bridges compares with moral-maps' own functions."""

import math
from dataclasses import replace

import pytest

from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.evaluate.readings import gated_selectivity, signed_flips
from steer_heal.records import VignetteScore

TARGET = {"Care": 1, "SocialNorms": -1}


def row(number, mass=0.9, **score):
    scores = {name: float(score.get(name, 0.0)) for name in FOUNDATIONS}
    total = sum(math.exp(value) for value in scores.values())
    p = {name: math.exp(value) / total for name, value in scores.items()}
    return VignetteScore(str(number), "Care", scores, p, mass, 0.1, 0.0)


def arms(n=8, **others):
    toward = [row(k, Care=2.0, SocialNorms=-2.0, **others) for k in range(n)]
    return toward, [row(k, Care=-2.0, SocialNorms=2.0) for k in range(n)]


def test_a_selective_move_scores_its_mean_and_rows_that_agree_leave_no_doubt():
    found = gated_selectivity(*arms(), TARGET, base_mass=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 4.0, 4.0))
    assert (found.n, found.n_invalid, found.parts["off"]) == (8, 0, pytest.approx(0.0))


def test_movement_off_the_target_costs_a_tenth():
    """Fairness up by 7: clr_f = score_f - mean moves it by 6 and every other foundation by -1."""
    found = gated_selectivity(*arms(Fairness=7.0), TARGET, base_mass=0.9)
    off = (6.0 + 4 * 1.0) / 5
    assert found.parts["on"] == pytest.approx(4.0)
    assert found.value == pytest.approx(4.0 - 0.1 * off)


def test_lost_answer_mass_counts_squared_and_gained_mass_does_not_count():
    toward, away = arms()
    halved = [replace(one, mass=0.45) for one in toward]
    assert gated_selectivity(halved, away, TARGET, base_mass=0.9).value == pytest.approx(1.0)
    assert gated_selectivity(toward, away, TARGET, base_mass=0.5).parts["coherence"] == 1.0


def test_flips_are_changes_of_the_answer():
    toward, away = arms(n=4)
    found = signed_flips([*toward[:3], replace(away[3], id="3")], away, TARGET)
    assert found.value == pytest.approx(0.75)
    assert (found.parts["Care"], found.parts["SocialNorms"]) == (0.75, -0.75)
    assert 0.0 <= found.low < found.value < found.high <= 1.0
    assert signed_flips(toward, away, {"Care": -1}).value == -1.0


def test_what_has_no_answer_is_left_out_and_counted_but_costs_mass():
    toward, away = arms(n=4)
    toward[0] = replace(toward[0], mass=0.0, score=dict.fromkeys(FOUNDATIONS, -math.inf))
    found = gated_selectivity(toward, away, TARGET, base_mass=0.9)
    assert (found.n, found.n_invalid) == (3, 1)
    assert found.parts["coherence"] == pytest.approx(0.75)
    assert math.isfinite(found.high)


@pytest.mark.parametrize("target", [{}, {"Kindness": 1}, {"Care": 2}, dict.fromkeys(FOUNDATIONS, 1)])
def test_targets_are_checked(target):
    with pytest.raises(SettingsError):
        gated_selectivity(*arms(), target, base_mass=0.9)


def test_other_vignettes_no_answers_and_no_mass_are_refused():
    toward, away = arms()
    with pytest.raises(SettingsError, match="different vignettes"):
        signed_flips(toward, away[1:], TARGET)
    with pytest.raises(SettingsError, match="answered in both"):
        signed_flips([replace(one, mass=0.0) for one in toward], away, TARGET)
    with pytest.raises(SettingsError, match="answer mass"):
        gated_selectivity(toward, away, TARGET, base_mass=0.0)
