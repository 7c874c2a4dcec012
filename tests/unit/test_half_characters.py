"""Half a character, as a cut emoji or bytes that are no UTF-8 leave it: one sentence at every door.

Of files of texts: `test_data`.
"""

import pytest

from components import view
from steer_heal.config import DoseRequest, HealSettings, SettingsError, SteerRequest, build
from steer_heal.models import system, user
from tests import tiny

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
