"""A trait of one's own: made from two poles, kept as a file, listed beside ours."""

import json
import re
from pathlib import Path

import pytest

from steer_heal import cli, data
from steer_heal.config import AUTO, DEFAULT_TRAIT, SettingsError, heal_settings
from steer_heal.data import own_traits
from steer_heal.engine import validate
from steer_heal.engine.vectors import Vectors
from tests import tiny

FORMAL = ("trait", "make", "formal", "--plus", "formal", "--minus", "casual")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_two_words_are_a_trait_that_is_kept_shown_and_deleted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert told(capsys, *FORMAL)[0] == 0
    made = data.trait("formal")
    assert (made.title, made.positive, made.negative) == (
        "Formal over casual",
        "You are formal.",
        "You are casual.",
    )
    assert (made.target, made.replies) == ({}, ())
    assert list(data.traits()) == [*data.bundled_traits(), "formal"]
    assert re.search(r"^formal +yours ", told(capsys, "trait", "list")[1], re.M)
    assert "more: You are formal." in told(capsys, "trait", "show", "formal")[1]
    out = tmp_path / "sent.json"
    assert told(capsys, "trait", "export", "formal", "--out", str(out))[0] == 0
    assert told(capsys, "trait", "delete", "formal")[0] == 0
    assert "formal" not in data.traits()
    assert told(capsys, "trait", "import", str(out))[0] == 0
    assert data.trait("formal") == made


def test_personas_replies_and_a_target_are_taken_as_they_stand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps([["Poor thing.", "Rules are rules."], ["Help them.", "Ask first."]]))
    more = ("--target", "care=1, Social Norms=-1", "--replies", str(replies))
    poles = ("--plus", "You are a nurse who hurries.", "--minus", "You are a clerk who waits.")
    assert told(capsys, "trait", "make", "nurse", *poles, *more)[0] == 0
    made = data.trait("nurse")
    assert made.positive == "You are a nurse who hurries."
    assert made.target == {"Care": 1, "SocialNorms": -1}
    assert made.replies[0] == ("Poor thing.", "Rules are rules.")
    assert made.scenes == data.trait("liberty_over_custom").scenes[-len(made.scenes) :]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("make", "x", "--plus", "blunt"), "two poles"),
        (("make", "x", "--plus", "blunt", "--minus", " "), "pole is empty"),
        (("make", "x", "--plus", "Blunt", "--minus", "blunt"), "two that differ"),
        (("make", "../x", "--plus", "a", "--minus", "b"), "will not do"),
        (("make", DEFAULT_TRAIT, "--plus", "a", "--minus", "b"), "trait of ours"),
        (("make", "x", "--plus", "a", "--minus", "b", "--target", "Love=1"), "no target"),
        (("make", "x", "--plus", "a", "--minus", "b", "--replies", "none.json"), "cannot be read"),
        (("make", "x", "--plus", "a" * 1001, "--minus", "b"), "at most 1000"),
        (("show", "x"), "Unknown trait"),
        (("show",), "Name the trait"),
        (("delete", DEFAULT_TRAIT), "of your own"),
        (("export", DEFAULT_TRAIT), "trait of ours"),
        (("import", "none.json"), "none.json"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_one_sentence_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], why: str
) -> None:
    code, said = told(capsys, "trait", *words)
    assert code == 2
    assert why in said
    assert said.count("\n") == 1
    assert own_traits.files() == {}


def test_one_is_never_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, *FORMAL)
    before = own_traits.files()["formal"].read_bytes()
    code, said = told(capsys, "trait", "make", "formal", "--plus", "stiff", "--minus", "loose")
    assert (code, "There is a trait 'formal'" in said) == (2, True)
    assert own_traits.files()["formal"].read_bytes() == before


def test_a_broken_file_is_left_out_and_told_to_who_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, *FORMAL)
    own_traits.files()["formal"].write_text('{"name": "formal",')
    assert "formal" not in data.traits()
    assert "formal is left out" in told(capsys, "trait", "list")[1]
    with pytest.raises(SettingsError, match=r"formal\.json line 1: not JSON"):
        data.trait("formal")


def test_its_vector_is_of_its_personas_and_a_run_needs_a_target(tmp_path: Path) -> None:
    own_traits.write(own_traits.of_poles("formal", "formal", "casual"))
    vectors = Vectors(tiny.shared("llama"), tmp_path)
    assert vectors.method(AUTO, "formal") == "mean_diff"
    assert vectors.vector("formal").meta["positive"] == "You are formal."
    with pytest.raises(SettingsError, match="names no foundation"):
        validate.check(heal_settings(model="demo", trait="formal"))
