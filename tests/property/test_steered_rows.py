"""Whatever is steered where: each row of a batch gets what a plain forward pass with a hook gives it alone,
one row, no cache, the whole text read anew for every token."""

from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_heal import forward
from steer_heal.config import EVERYWHERE, SampleSettings, build, steered_share
from steer_heal.config.gates import check_gate
from steer_heal.generate import Row, complete
from steer_heal.generate.text import TextStream
from steer_heal.vectors.steering import Directions, coefficients, shares, steer
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.tiny import logits

N = 6
PROMPTS = ((2, 9, 30, 41, 7), (2, 60, 61), (2, *range(40, 57)))
SAMPLE = build(SampleSettings, max_new_tokens=N, greedy=True)
gates = st.sampled_from([EVERYWHERE, "prompt", "answer", "first 2", "after 1", "after 3", "ramp 4"])
mixes = st.lists(st.sampled_from([0.0, 0.0, 2.0, -3.0]), min_size=4, max_size=4)
row = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from([-4.0, 2.0, 6.0]), st.sampled_from([(0,), (1, 2), (3,)]), gates
)


def plain_forward(lm, ids, n_prompt, added, gate):
    """log p of the token after `ids`; each position gets its share of `added(layer, hidden)`."""
    n_answer = len(ids) - n_prompt
    places = [-1] * n_prompt + list(range(n_answer))
    shares_T1 = torch.tensor([[steered_share(gate, place)] for place in places])
    with torch.no_grad(), ExitStack() as hooks:
        for layer, block in enumerate(lm.blocks):

            def hook(_block, _inputs, output, layer=layer):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden + shares_T1 * added(layer, hidden)
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            hooks.callback(block.register_forward_hook(hook).remove)
        return lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)


def nothing(_layer, hidden):
    return 0 * hidden


def assert_as_alone(lm, asked, added, written):
    """Every token is the likeliest of the plain pass over those before it, and has its p and its KL."""
    ids = list(asked.prompt_ids)
    for place, token in enumerate(written.tokens):
        logp = plain_forward(lm, ids, len(asked.prompt_ids), added, asked.where)
        logq = plain_forward(lm, ids, len(asked.prompt_ids), nothing, EVERYWHERE)
        nats = float(torch.cat([logp, logq]).abs().max())
        p, kl = float(logp[token.id].exp()), float((logp.exp() * (logp - logq)).sum())
        p_base, top = float(logq[token.id].exp()), logq.topk(3).values.exp()
        for found, wanted in ((token.p, p), (token.p, float(logp.max().exp())), (token.p_base, p_base)):
            assert_near(found, wanted, model_rounding(lm), whole=nats * wanted)
        assert_near([one.p_base for one in token.base_top], top, model_rounding(lm), whole=nats * top)
        assert_near(token.kl, kl, model_rounding(lm), whole=nats)
        assert token.share == (None if asked.where == EVERYWHERE else steered_share(asked.where, place))
        ids.append(token.id)


@settings(max_examples=15)
@given(st.sampled_from(tiny.ARCHS), st.booleans(), st.lists(row, min_size=1, max_size=4))
def test_a_gated_row_is_a_plain_pass_with_a_hook_whoever_is_beside_it(arch, ours, asked):
    lm = tiny.shared(arch)
    directions_LD = tiny.directions(lm)
    rows = [
        Row(prompt, coefficients(lm.n_layers, layers, c)[0], shadow=True, where=gate)
        for prompt, c, layers, gate in asked
    ]
    with patch.object(forward, "is_known", return_value=ours):
        written = complete(lm, rows, directions_LD, SAMPLE)
    for one, found in zip(rows, written, strict=True):
        added_LD = one.coefficients_L[:, None] * directions_LD
        assert_as_alone(lm, one, lambda layer, _, added_LD=added_LD: added_LD[layer], found)


@settings(max_examples=15)
@given(
    st.sampled_from(tiny.ARCHS),
    st.booleans(),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.tuples(mixes, st.sampled_from(PROMPTS), gates), min_size=1, max_size=4),
)
def test_a_row_of_four_vectors_is_a_plain_pass_with_a_hook_whoever_is_beside_it(arch, ours, ablated, asked):
    """Some added, some ablated, with weights and gates of its own; all rows in one batch."""
    lm = tiny.shared(arch)
    directions_MLD = torch.stack([tiny.directions(lm, seed) for seed in range(4)])
    steers = Directions(directions_MLD, tuple(ablated)) if any(ablated) else directions_MLD
    rows = []
    for weights, prompt, gate in asked:
        coefficients_LM = torch.zeros(lm.n_layers, 4)
        coefficients_LM[1:3] = torch.tensor(weights) * torch.where(torch.tensor(ablated), 0.25, 1.0)
        rows.append(Row(prompt, coefficients_LM, shadow=True, where=gate))
    with patch.object(forward, "is_known", return_value=ours):
        written = complete(lm, rows, steers, SAMPLE)
    for one, found in zip(rows, written, strict=True):
        steered = bool(one.coefficients_L.any())

        def added(layer, hidden, of=one.coefficients_L):
            parts = zip(of[layer], directions_MLD[:, layer], ablated, strict=True)
            return sum(
                (-c * (hidden * v_D).sum(dim=-1, keepdim=True) * v_D if taken else c * v_D.expand_as(hidden))
                for c, v_D, taken in parts
            )

        assert_as_alone(lm, one if steered else replace(one, where=EVERYWHERE), added, found)


@given(gates, st.integers(0, 3), st.integers(1, 5))
def test_a_whole_text_at_once_gets_what_its_tokens_get_one_by_one(gate, padding, n_answer):
    """As a heal run's writer is read when it is imitated: padded on the left, without a cache."""
    lm = tiny.shared("llama")
    ids, n_prompt = list(range(30, 34 + n_answer)), 4
    matrix_BL, directions_LD = coefficients(lm.n_layers, (1, 2), 3.0), tiny.directions(lm)
    shares_BT = shares(gate, [(n_prompt, n_answer), (n_prompt + padding, n_answer)])
    mask_BT = torch.ones(2, n_prompt + padding + n_answer, dtype=torch.long)
    mask_BT[0, :padding] = 0
    batch = torch.tensor([[0] * padding + ids, [9] * padding + ids])
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad(), steer(lm.blocks, directions_LD, matrix_BL, shares_BT):
        found = lm.model(batch, attention_mask=mask_BT, position_ids=positions_BT).logits[0, -1]
    added_LD = matrix_BL[0][:, None] * directions_LD
    wanted = plain_forward(lm, ids, n_prompt, lambda layer, _: added_LD[layer], gate)
    assert_near(found.double().log_softmax(-1), wanted, model_rounding(lm))


@pytest.mark.parametrize("wrong", ["", "middle", "first", "first 0", "first -1", "ramp 999", "both 3"])
def test_a_gate_is_written_in_one_way_and_what_says_no_place_is_refused(wrong):
    with pytest.raises(ValueError, match=r"first N|first 8|give 1 to"):
        check_gate(wrong)
    assert [check_gate(text) for text in ("Both", " first   08 ", "RAMP 3")] == ["both", "first 8", "ramp 3"]


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(tiny.ARCHS),
    st.lists(st.sampled_from([0.0, 0.0, 1.0, -3.0, 1e4]), min_size=4, max_size=4),
)
def test_leaving_undoes_exactly_and_zero_is_base(arch, row):
    lm = tiny.shared(arch)
    before = logits(lm)
    with steer(lm.blocks, torch.ones(4, 32), torch.tensor([row])):
        inside = logits(lm)
    assert torch.equal(logits(lm), before)
    if not any(row):
        assert torch.equal(inside, before)


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_streamed_text_is_the_whole_text(text):
    words = tiny.tokenizer()
    ids = words.encode(text, add_special_tokens=False)
    stream = TextStream(lambda some: words.decode(some, skip_special_tokens=True))
    parts = [stream.push(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(parts) == words.decode(ids, skip_special_tokens=True)
