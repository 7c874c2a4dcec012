"""Rows of several requests in one decode: each drawn by its own settings, each leaving on its own."""

from itertools import chain

import pytest

from steer_heal.config import SampleSettings
from steer_heal.generate import Row, complete, decode
from steer_heal.models import user
from steer_heal.vectors.steering import coefficients
from tests import tiny

HOWS = [
    SampleSettings(max_new_tokens=9, seed=1),
    SampleSettings(max_new_tokens=5, greedy=True),
    SampleSettings(max_new_tokens=12, seed=2, temperature=0.7, top_k=9),
    SampleSettings(max_new_tokens=9, seed=2),
]


@pytest.fixture
def directions_LD():
    return tiny.directions(tiny.shared())


def rows(lm, *, own):
    """Four requests of a steered and a base answer; the last two ask for the same prompt."""
    prompts = [tuple(lm.encode_chat([user(text)])) for text in ("One?", "Another one?", "Third", "Third")]
    made = []
    for number, (prompt, how) in enumerate(zip(prompts, HOWS, strict=True)):
        sample = how if own else None
        steered = coefficients(4, (1, 2), number - 1.5)[0]
        made.append([Row(prompt, steered, shadow=True, sample=sample), Row(prompt, sample=sample)])
    return made


def tokens(completions):
    return [[token.id for token in row.tokens] for row in completions]


def test_a_row_that_is_over_leaves_within_a_token_and_the_others_do_not_notice(directions_LD):
    lm = tiny.shared("gemma3")
    asked, over = [*chain(*rows(lm, own=True))], set()
    expected = complete(lm, asked, directions_LD, HOWS[0])
    written = [[] for _ in asked]
    for number, step in enumerate(decode(lm, asked, directions_LD, HOWS[0], over=over.__contains__)):
        for row, token in step:
            written[row].append(token.id)
        if number == 2:
            over |= {0, 1, 6}
    left = [3 if row in over else len(expected[row].tokens) for row in range(8)]
    assert [len(row) for row in written] == left
    assert written == [whole[:n] for whole, n in zip(tokens(expected), left, strict=True)]


def test_equal_rows_of_two_requests_go_on_while_one_of_them_needs_them(directions_LD):
    lm = tiny.shared("gemma3")
    row, over = rows(lm, own=True)[0][0], set()
    n_tokens = len(complete(lm, [row], directions_LD, HOWS[0])[0].tokens)
    steps = []
    for step in decode(lm, [row, row], directions_LD, HOWS[0], over=over.__contains__):
        steps.append([number for number, _ in step])
        over.add(0)
    assert n_tokens > 1
    assert steps == [[0, 1], *[[1]] * (n_tokens - 1)]


def test_nothing_is_computed_once_every_row_is_over(directions_LD):
    lm = tiny.shared("gemma3")
    steps = decode(lm, rows(lm, own=True)[0], directions_LD, HOWS[0], over=lambda _: over)
    over = False
    next(steps)
    over = True
    assert list(steps) == []
