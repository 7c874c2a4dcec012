"""A conversation as the page holds it, without a browser or an engine."""

import pytest

from components.controls import FORM
from components.talking import Exchange, messages, request, steering
from steer_heal.config import SettingsError
from steer_heal.records import Spoken, TextHealth, Token
from tests.fake_engine import FORM_VALUES

FINE = TextHealth(1.0, 1.0, 0.0)
SAID = (
    Exchange("# one", {"base": (spoken := (Spoken((Token(0, "<b>dull</b>", 1.0),), FINE),))}, 0, "alpha 1"),
    Exchange("two", {"base": spoken, "steered": (Spoken((Token(0, "kind", 1.0),), FINE),)}),
)
FILLED = {name: FORM_VALUES[name] for name in FORM} | {"band": (0.4, 0.6)}


def test_each_voice_goes_on_from_its_own_answers_and_a_later_one_from_the_first_voice_s() -> None:
    given = messages(SAID, "steered", "three")
    assert [one["content"] for one in given] == ["# one", "<b>dull</b>", "two", "kind", "three"]
    assert [one["role"] for one in given] == ["user", "assistant"] * 2 + ["user"]
    assert messages(SAID, "a-run/2", "x")[3]["content"] == "<b>dull</b>"


def test_the_form_becomes_a_request() -> None:
    asked = request(SAID, "three", 2, ["base", "steered", "a-run/2"], 3, FILLED)
    assert [(one.alpha, one.run, one.round) for one in asked.voices] == [
        (0.0, "", 0),
        (1.0, "", 0),
        (0.0, "a-run", 2),
    ]
    assert (asked.n, asked.sample.seed) == (3, len(SAID) + 2)
    assert steering(asked, ["base", "steered", "a-run/2"]) == (
        "alpha 1 of care_over_authority, prompt and answer"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": " "}, "There is no message"),
        ({"names": []}, "Nobody is chosen"),
        ({"names": ["base"] * 5}, "at most 4"),
        ({"names": ["a/x"]}, "is nobody who answers"),
        ({"form": FILLED | {"exact": None}}, "alpha is empty"),
    ],
)
def test_what_cannot_be_asked_is_said(changes: dict, said: str) -> None:
    asked = {"before": (), "text": "x", "take": 0, "names": ["base"], "n": 1, "form": FILLED} | changes
    with pytest.raises(SettingsError, match=said):
        request(**asked)
