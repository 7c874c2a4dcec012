"""Half a character, as a cut emoji or bytes that are no UTF-8 leave it: one sentence at every door."""

import json

import pytest

from components import view
from steer_heal import data
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
        lambda text: build(SteerRequest, prompt="a", trait=text),
        lambda text: build(DoseRequest, prompts=("a", text)),
        lambda text: build(HealSettings, model="demo", name=text),
        lambda text: build(HealSettings, model=text),
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


@pytest.mark.parametrize("field", ["text", "id"])
def test_a_vignettes_file_is_refused_by_its_line(tmp_path, field):
    rows = [{"text": "I take it.", "foundation": "Care"}, {"text": "I give it.", "foundation": "Care"}]
    rows[1][field] = f"I smile {HALF}."
    file = tmp_path / "some.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SettingsError, match=f"some.jsonl line 2: the text {SAID}"):
        data.vignettes(file)


def test_so_is_a_traits_file(tmp_path, monkeypatch):
    trait = json.loads((data.FOLDER / "traits.json").read_text())[0]
    (tmp_path / "traits.json").write_text(json.dumps([{**trait, "positive": f"You care {HALF}."}]))
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(SettingsError, match=f"traits.json entry 1: the text {SAID}"):
        data.traits()


@pytest.mark.parametrize("arguments", [("dose", "--prompt", BYTE), ("heal", "--name", BYTE)])
def test_the_command_line_refuses_it(run, here, arguments):
    code, out, err = run(*arguments, "--model", "tiny")
    assert (code, out) == (2, "")
    assert SAID in err
    assert not list(here.rglob("config.json"))


@pytest.mark.parametrize("command", [("eval",), ("heal", "--rounds", "1")])
def test_the_command_line_refuses_a_file_with_it(run, here, command):
    (here / "surrogate.jsonl").write_text(
        json.dumps({"text": f"A boy smiles {HALF} at you", "foundation": "Care"})
    )
    code, _, err = run(*command, "--model", "tiny", "--vignettes", "surrogate.jsonl")
    assert code == 2
    assert f"surrogate.jsonl line 1: the text {SAID}" in err


def test_what_the_page_shows_of_it_can_be_sent():
    view.error(f"Unknown model {HALF}").encode()
