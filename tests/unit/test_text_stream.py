from steer_heal.generate.text import TextStream
from tests import tiny

WORDS = tiny.tokenizer()


def stream():
    return TextStream(lambda ids: WORDS.decode(ids, skip_special_tokens=True))


def test_a_character_of_several_tokens_comes_whole_with_its_last():
    made = stream()
    ids = WORDS.encode("a\U0001f9d1b", add_special_tokens=False)
    assert [made.push(token) for token in ids] == ["a", "", "", "", "\U0001f9d1", "b"]


def test_bytes_that_form_no_character_do_not_stall():
    made = stream()
    lone = WORDS.encode("\U0001f9d1", add_special_tokens=False)[1]
    parts = [made.push(lone) for _ in range(8)]
    assert sum(len(part) for part in parts) == 8


def test_the_last_token_gives_what_is_left():
    made = stream()
    first = WORDS.encode("\U0001f9d1", add_special_tokens=False)[0]
    assert made.push(first, last=True) == "\N{REPLACEMENT CHARACTER}"


def test_a_control_token_has_no_text():
    assert stream().push(tiny.SPECIAL.index("<end_of_turn>"), last=True) == ""
