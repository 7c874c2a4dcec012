import threading
from itertools import chain

import pytest
import torch

from steer_heal.config import MAX_PROMPT_TOKENS, SampleSettings, SettingsError
from steer_heal.forward.ours import OurRows
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.generate.divergence import diverge, probability
from steer_heal.generate.rows import plan
from steer_heal.generate.text import TextStream
from steer_heal.models import user
from steer_heal.vectors.steering import coefficients
from tests import tiny


@pytest.fixture
def lm():
    return tiny.shared("gemma3")


@pytest.fixture
def directions_LD(lm):
    return tiny.directions(lm)


def ids(lm, text="What is it?"):
    return tuple(lm.encode_chat([user(text)]))


def at(c, layers=(1, 2)):
    return coefficients(4, layers, c)[0]


def ids_of(completion):
    return [token.id for token in completion.tokens]


def greedy(n):
    return SampleSettings(max_new_tokens=n, greedy=True)


def test_an_end_token_has_no_text(lm, directions_LD):
    ending = tiny.language_model("gemma3")
    bias = torch.zeros(len(ending.tokenizer))
    bias[5] = 1e4
    ending.model.lm_head.register_forward_hook(lambda _m, _i, logits: logits + bias)
    found = complete(ending, [Row(ids(lm))], directions_LD, greedy(4))[0]
    assert (found.text, found.ended, len(found.tokens)) == ("", True, 1)


def test_stop_is_honoured_within_one_token(lm, directions_LD):
    stopped = threading.Event()
    seen = 0
    for _ in decode(lm, [Row(ids(lm))], directions_LD, greedy(50), stop=stopped.is_set):
        seen += 1
        if seen == 3:
            stopped.set()
    assert seen == 3
    assert list(decode(lm, [Row(ids(lm))], directions_LD, greedy(5), stop=lambda: True)) == []


def test_a_model_that_fails_in_the_middle_is_left_clean(directions_LD):
    fresh = tiny.language_model("llama")

    def fail(_module, _inputs):
        raise RuntimeError("out of memory")

    handle = fresh.blocks[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(decode(fresh, [Row((2, 9)), Row((2, 9), at(1.0))], directions_LD, greedy(2)))
    handle.remove()
    assert not any(block._forward_hooks or "forward" in vars(block) for block in fresh.blocks)


def test_without_a_shadow_nothing_is_measured(lm, directions_LD):
    token = complete(lm, [Row(ids(lm), at(2.0))], directions_LD, greedy(1))[0].tokens[0]
    assert (token.kl, token.p_base, token.base_top) == (None, None, ())
    assert 0.0 < token.p <= 1.0


def test_completions_come_in_order_whatever_the_batch(lm, directions_LD):
    texts = ["a", "a rather long question about many things", "mid length text", "b"]
    rows = [Row(ids(lm, text), at(float(i)), alpha=i, prompt=text) for i, text in enumerate(texts)]
    heard = []
    small = complete(
        lm, rows, directions_LD, greedy(6), batch_size=2, progress=lambda done, n: heard.append((done, n))
    )
    large = complete(lm, rows, directions_LD, greedy(6), batch_size=9)
    assert [row.prompt for row in small] == texts
    assert [row.alpha for row in small] == [0, 1, 2, 3]
    assert [row.text for row in small] == [row.text for row in large]
    assert heard == [(2, 4), (4, 4)]


def test_equal_rows_are_computed_once_and_one_base_serves_a_prompt():
    rows = [
        Row((1, 2)),
        Row((1, 2), at(-0.0), shadow=True),
        Row((1, 2), at(1.0), shadow=True),
        Row((1, 2), rng_stream=1),
        Row((3, 4), at(1.0), shadow=True),
        Row((3, 4), at(2.0), shadow=True),
    ]
    made = plan(rows, (4,))
    assert made.rows_of_lane == {0: [0, 1], 1: [2], 2: [3], 3: [4], 4: [5]}
    assert made.shadow_of_lane == {0: 0, 1: 0, 3: 5, 4: 5}
    assert [lane.writes for lane in made.lanes] == [True] * 5 + [False]
    assert [lane.n_more for lane in made.lanes] == [1, 0, 0, 0, 0, 1]


def test_bases_part_only_where_texts_do(lm, directions_LD, monkeypatch):
    """How many lanes are read at each step: a writer each, and a base for each text that differs."""
    read = []
    on = OurRows.read
    monkeypatch.setattr(OurRows, "read", lambda self, ids_Bn: read.append(len(ids_Bn)) or on(self, ids_Bn))
    rows = [Row(ids(lm)), *(Row(ids(lm), at(c), shadow=True) for c in (0.001, 0.002, 5.0, 5.001))]
    made = complete(lm, rows, directions_LD, greedy(8))
    texts = [ids_of(row) for row in made]
    assert texts[0] == texts[1] == texts[2] != texts[3]
    expected = [5 + len({tuple(text[: step + 1]) for text in texts}) - 1 for step in range(7)]
    assert read == expected


def test_bad_rows_are_refused(lm, directions_LD):
    def start(row):
        return list(decode(lm, [row], directions_LD, greedy(1)))

    with pytest.raises(SettingsError, match="empty"):
        start(Row(()))
    with pytest.raises(SettingsError, match="layers"):
        start(Row((1,), torch.ones(3)))
    with pytest.raises(SettingsError, match="finite"):
        start(Row((1,), torch.full((4,), float("nan"))))
    with pytest.raises(SettingsError, match="shorten"):
        start(Row((5,) * (MAX_PROMPT_TOKENS + 1)))
    assert list(decode(lm, [], directions_LD, greedy(1))) == []


@pytest.mark.parametrize("ends", ["base", "steered"])
def test_a_row_that_ends_alone_of_its_kind_leaves_the_others_be(lm, directions_LD, ends):
    """It ends with its end token. The last unsteered row leaves, or the last steered one: what stays is as
    before."""
    rows = [Row(ids(lm)), Row(ids(lm), at(-6.0))]
    free = complete(lm, rows, directions_LD, greedy(8))
    over, other = (0, 1) if ends == "base" else (1, 0)
    ending = tiny.language_model("gemma3")
    only = set(ids_of(free[over])) - set(ids_of(free[other]))
    ending.eos_ids = frozenset(only)
    found = complete(ending, rows, directions_LD, greedy(8))
    assert only
    assert found[over].ended
    assert len(found[over].tokens) < 8
    assert ids_of(found[over]) == ids_of(free[over])[: len(found[over].tokens)]
    assert ids_of(found[other]) == ids_of(free[other])


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_alpha_zero_writes_what_base_wrote_in_another_request(arch, directions_LD, temperature):
    """The page keeps base's answer: written alone or beside a steered row, alpha 0 later gives the same."""
    lm, store = tiny.shared(arch), PrefixStore()
    sample = SampleSettings(max_new_tokens=20, temperature=temperature, seed=4)

    def write(*rows):
        tokens = [[] for _ in rows]
        for step in decode(lm, rows, directions_LD, sample, store=store):
            for row, token in step:
                tokens[row].append(token.id)
        return tokens

    first, _ = write(Row(ids(lm)), Row(ids(lm), at(5.0), shadow=True))
    assert write(Row(ids(lm), at(0.0), shadow=True)) == write(Row(ids(lm))) == [first]


WORDS = tiny.tokenizer()


def stream():
    return TextStream(lambda ids: WORDS.decode(ids, skip_special_tokens=True))


def test_a_character_of_several_tokens_comes_whole_with_its_last():
    made = stream()
    ids = WORDS.encode("a\U0001f9d1b", add_special_tokens=False)
    assert [made.push(token) for token in ids] == ["a", "", "", "", "\U0001f9d1", "b"]


def test_bytes_that_form_no_character_do_not_stall_and_the_last_gives_what_is_left():
    first, lone = WORDS.encode("\U0001f9d1", add_special_tokens=False)[:2]
    made = stream()
    parts = [made.push(lone) for _ in range(8)]
    assert sum(len(part) for part in parts) == 8
    assert stream().push(first, last=True) == "\N{REPLACEMENT CHARACTER}"


def test_probability_of_what_was_written():
    logits_BV, ids_B = torch.randn(7, 11, generator=torch.Generator().manual_seed(0)), torch.arange(7)
    wanted = torch.distributions.Categorical(logits=logits_BV).log_prob(ids_B).exp()
    torch.testing.assert_close(probability(logits_BV, ids_B), wanted)


def test_a_row_against_itself_is_exactly_zero():
    logits_BV, ids_B = 8 * torch.randn(7, 11), torch.zeros(7, dtype=torch.long)
    assert not diverge(logits_BV, logits_BV, range(7), ids_B).kl_B.any()


HOWS = [
    SampleSettings(max_new_tokens=9, seed=1),
    SampleSettings(max_new_tokens=5, greedy=True),
    SampleSettings(max_new_tokens=12, seed=2, temperature=0.7, top_k=9),
    SampleSettings(max_new_tokens=9, seed=2),
]


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


def test_enough_ends_a_row_by_its_own_text_also_in_batches(directions_LD):
    lm = tiny.shared("gemma3")
    asked = [*chain(*rows(lm, own=True))]
    whole = complete(lm, asked, directions_LD, HOWS[0], batch_size=3)
    wanted = {
        number: "".join(token.text for token in whole[number].tokens[: 2 + number % 2])
        for number in (1, 4, 6)
    }
    found = complete(
        lm,
        asked,
        directions_LD,
        HOWS[0],
        batch_size=3,
        enough=lambda number, text: text == wanted.get(number),
    )
    assert [row.text for row in found] == [wanted.get(number, row.text) for number, row in enumerate(whole)]
    assert not any(found[number].ended for number in wanted)


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
