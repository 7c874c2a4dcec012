"""Every refusal of a setting reads as a sentence that says what would be right; so of half a character."""

import argparse
import math

import pytest

from components import view
from steer_heal.cli.arguments import nested, setting
from steer_heal.config import (
    DoseRequest,
    HealSettings,
    SettingsError,
    SteerRequest,
    build,
    heal_settings,
    named_settings,
)
from steer_heal.models import system, user
from tests import tiny

NEEDED = {
    SteerRequest: {"trait": "care_over_authority", "prompt": "A man lies.", "alpha": 1.0},
    HealSettings: {"model": "demo"},
}


@pytest.mark.parametrize(
    ("cls", "wrong", "said"),
    [
        (SteerRequest, {"prompt": ""}, "prompt is empty: type something."),
        (SteerRequest, {"prompt": "x" * 9000}, "prompt has 9000 characters: shorten it to 8000 or fewer."),
        (SteerRequest, {"alpha": math.nan}, "alpha must be a number, not nan."),
        (SteerRequest, {"alpha": 65}, "alpha must be at most 64, not 65."),
        (SteerRequest, {"band": (0.9, 0.6)}, "The band 0.9-0.6 is reversed: give the lower end first."),
        (SteerRequest, {"colour": 1}, "colour is not a setting: see --help or the settings of a run."),
        (HealSettings, {"rounds": 0}, "rounds must be at least 1, not 0."),
        (DoseRequest, {"alphas": [1.0] * 65}, "alphas must have at most 64, not 65."),
        (HealSettings, {"rounds": 2.5}, "rounds must be a whole number, not 2.5."),
        (HealSettings, {"preset": "huge"}, "preset must be 'quick' or 'standard', not 'huge'."),
        (HealSettings, {"rounds": 10**4000}, f"rounds must be at most 32, not 1{'0' * 17}...{'0' * 19}."),
        (HealSettings, {"x" * 5000: 1}, f"{'x' * 80} is not a setting: see --help or the settings of a run."),
        (HealSettings, {"data": {"alphas": []}}, "data.alphas must have at least 1, not 0."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(cls, wrong, said):
    values = {**NEEDED.get(cls, {}), **wrong}
    with pytest.raises(SettingsError) as refused:
        build(cls, **values)
    assert str(refused.value) == said


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 700 + "]" * 700, "1" * 5000, "x" * 5000])
def test_a_value_that_is_very_deep_or_very_long_is_one_short_sentence(value):
    for changes in (nested([setting(f"train.epochs={value}")]), named_settings(f"train.epochs={value}")):
        with pytest.raises(SettingsError, match=r"^train\.epochs") as refused:
            heal_settings(model="demo", **changes)
        assert len(str(refused.value)) < 120
    for told in (setting, named_settings):
        with pytest.raises((SettingsError, argparse.ArgumentTypeError), match="no setting") as refused:
            told(value)
        assert len(str(refused.value)) < 200


HALF = "\ud83d"
BYTE = b"caf\xe9".decode(errors="surrogateescape")
SAID = "holds half a character"


@pytest.mark.parametrize("text", [f"A boy smiles {HALF} at you", BYTE])
@pytest.mark.parametrize(
    "door",
    [
        lambda text: build(SteerRequest, prompt=text),
        lambda text: build(DoseRequest, prompts=("a", text)),
        lambda text: build(HealSettings, model="demo", name=text),
        lambda text: build(HealSettings, model="demo", evaluate={"vignettes": text}),
        lambda text: tiny.shared().encode_chat([user(text)]),
        lambda text: tiny.shared().encode_chats([[user("a")], [system(text), user("a")]]),
    ],
)
def test_no_setting_and_no_chat_takes_it(door, text):
    with pytest.raises(SettingsError, match=SAID) as raised:
        door(text)
    assert str(raised.value).isprintable()


def test_a_whole_emoji_is_none():
    text = "A boy smiles \U0001f642 at you"
    assert build(SteerRequest, prompt=text).prompt == text
    assert text in tiny.shared().decode(tiny.shared().encode_chat([user(text)]))


@pytest.mark.parametrize("arguments", [("dose", "--prompt", BYTE), ("heal", "--name", BYTE)])
def test_the_command_line_refuses_it(run, here, arguments):
    code, out, err = run(*arguments, "--model", "tiny")
    assert (code, out) == (2, "")
    assert SAID in err
    assert not list(here.rglob("config.json"))


def test_what_the_page_shows_of_it_can_be_sent():
    view.error(f"Unknown model {HALF}").encode()
