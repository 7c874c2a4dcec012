"""What a profile is worth: agreement with the labels, its interval, chance, and when it is not to be had."""

import math

import pytest

from steer_heal.config import FOUNDATIONS
from steer_heal.evaluate.agreement import agreement, wilson
from steer_heal.evaluate.frames import choose
from steer_heal.records import CANNOT_ANSWER, Agreement, Profile, VignetteScore


def scored(labels, answers, mass=1.0):
    return [
        VignetteScore(f"v{i}", label, {}, dict.fromkeys(FOUNDATIONS, 0.1) | {answer: 0.4}, mass, 0.0, 0.0)
        for i, (label, answer) in enumerate(zip(labels, answers, strict=True))
    ]


TWICE = FOUNDATIONS * 2


def test_it_is_the_share_whose_likeliest_foundation_is_the_label():
    found = agreement(scored(TWICE, (*FOUNDATIONS, *FOUNDATIONS[::-1])))
    assert found.value == pytest.approx(8 / 14)
    assert (found.low, found.high) == pytest.approx(wilson(8, 14))
    assert found.chance == pytest.approx(1 / 7)
    assert not found.cannot_answer
    assert found.sentence("cloze") == "agreement 0.57 (0.33-0.79), chance 0.14, frame cloze"


def test_naming_one_foundation_always_is_chance_and_says_so():
    found = agreement(scored(TWICE, ["Care"] * 14))
    assert found.value == found.chance
    assert found.cannot_answer
    assert found.sentence().startswith(f"{CANNOT_ANSWER}: agreement 0.14")
    mostly = agreement(scored(["Care"] * 10 + ["Loyalty"] * 4, ["Care"] * 14))
    assert mostly.value == mostly.chance == pytest.approx(10 / 14), "the most frequent label is no skill"
    assert mostly.cannot_answer


def test_what_could_not_be_answered_agrees_with_nothing():
    broken = [
        VignetteScore("v", "Care", {}, dict.fromkeys(FOUNDATIONS, 0.0), 0.0, math.nan, 0.0) for _ in range(7)
    ]
    rest = [name for name in FOUNDATIONS if name != "Care"]
    assert agreement([*broken, *scored([*rest, "Liberty"], [*rest, "Liberty"])]).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([""] * 20, "no labels"),
        (["Care"] * 20, "all vignettes are labelled Care"),
        (FOUNDATIONS, "fewer than 14 vignettes"),
    ],
)
def test_where_it_is_not_to_be_had_one_sentence_says_why(labels, why):
    found = agreement(scored(labels, ["Care"] * len(labels)))
    assert (found.value, found.low, found.chance, found.cannot_answer) == (None, None, None, False)
    assert found.sentence("choice") == f"agreement is not to be had, frame choice: {found.why}"
    assert not found.why.endswith(".")
    assert why in found.why
    assert found.sentence() == f"agreement is not to be had: {found.why}"


def test_wilson_s_interval_is_the_published_one():
    """81 of 263: 0.2553 to 0.3662, Newcombe, 1998, Statistics in Medicine 17, table I."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert 0.0 < wilson(0, 20)[1] < 0.2


def one(frame, value, low, chance=1 / 7):
    return Profile({}, None, 70, frame=frame, agreement=Agreement(value, low, 1.0, chance))


def test_the_frame_that_agrees_best_is_chosen_and_one_above_chance_first():
    choice, cloze = one("choice", 0.15, 0.08), one("cloze", 0.6, 0.5)
    assert choose([choice, cloze]).frame == "cloze"
    assert choose([one("choice", 0.9, 0.8), cloze]).frame == "choice"
    assert choose([one("choice", 0.6, 0.5), cloze]).frame == "choice", "alike: the first"
    assert choose([one("choice", 0.5, 0.1), one("cloze", 0.3, 0.2)]).frame == "cloze"
    assert choose([choice, one("cloze", 0.2, 0.12)]).agreement.cannot_answer
