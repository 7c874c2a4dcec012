"""The decode loop against the slow way: one row, no cache, the whole text read anew for every token."""

from functools import cache

import pytest
import torch

from steer_heal.config import SampleSettings
from steer_heal.forward.plain import PlainForward
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.models import user
from steer_heal.records import Completion
from steer_heal.vectors.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding

N = 8
TEXTS = ["hi", "What would you do if it rained all day long?", "Tell me of bees, please."]


DIRECTIONS = tiny.directions(tiny.shared())


def naive(lm, row):
    coefficients_L = torch.zeros(4) if row.coefficients_L is None else row.coefficients_L
    return naive_of(lm, row.prompt_ids, tuple(coefficients_L.tolist()))


@cache
def naive_of(lm, prompt_ids, coefficients_L):
    """Greedy ids, and per token: p, KL(steered || base), p under base and its largest, the largest |log p|;
    each step reads all from the start."""
    ids, found = list(prompt_ids), []
    with torch.no_grad():
        for _ in range(N):
            read = torch.tensor([ids])
            with steer(lm.blocks, DIRECTIONS, torch.tensor([coefficients_L])):
                logp = lm.model(input_ids=read, use_cache=False).logits[0, -1].double().log_softmax(-1)
            logq = lm.model(input_ids=read, use_cache=False).logits[0, -1].double().log_softmax(-1)
            token = int(logp.argmax())
            kl = float((logp.exp() * (logp - logq)).sum())
            nats = float(logp.abs().max())
            found.append((token, float(logp[token].exp()), kl, float(logq[token].exp()), logq.topk(3), nats))
            ids.append(token)
            if token in lm.eos_ids:
                break
    return found


def rows_of(lm):
    prompts = [tuple(lm.encode_chat([user(text)])) for text in TEXTS]

    def at(c, *layers):
        return coefficients(4, layers, c)[0]

    return [
        Row(prompts[0]),
        Row(prompts[0], at(2.0, 1, 2), shadow=True),
        Row(prompts[0], at(-3.0, 2), shadow=True),
        Row(prompts[1], at(2.0, 1, 2), shadow=True),
        Row(prompts[1], at(4.0, 3)),
        Row(prompts[2], at(5.0, 0), shadow=True),
        Row(prompts[2], at(0.0, 0), shadow=True),
    ]


def assert_as_naive(lm, row, completion):
    expected = naive(lm, row)
    assert [token.id for token in completion.tokens] == [entry[0] for entry in expected]
    for token, (_, p, kl, p_base, top, nats) in zip(completion.tokens, expected, strict=True):
        assert_near(token.p, p, model_rounding(lm), whole=nats * p)
        if row.shadow:
            assert_near(token.kl, kl, model_rounding(lm), whole=nats)
            assert_near(token.p_base, p_base, model_rounding(lm), whole=nats * p_base)
            assert [a.text for a in token.base_top] == [lm.decode([i]) for i in top.indices.tolist()]
            p_base_top = top.values.exp()
            found = [alternative.p_base for alternative in token.base_top]
            assert_near(found, p_base_top, model_rounding(lm), whole=nats * p_base_top)


def test_mixed_prompts_doses_layers_and_shadows_in_one_batch(lm):
    """Batched against single, left padding, cache against none, rows leaving, KL: all at once."""
    rows = rows_of(lm)
    found = complete(lm, rows, DIRECTIONS, SampleSettings(max_new_tokens=N, greedy=True))
    for row, completion in zip(rows, found, strict=True):
        assert_as_naive(lm, row, completion)


def test_one_prompt_many_doses_through_the_store(lm):
    """The slider: the same prompt again and again, other doses and bands, the base read once."""
    store = PrefixStore()
    prompt = rows_of(lm)[0].prompt_ids
    sample = SampleSettings(max_new_tokens=N, greedy=True)
    for c, layers in ((2.0, (1, 2)), (5.0, (0,)), (-4.0, (3,))):
        for shadow in (True, False):
            row = Row(prompt, coefficients(4, layers, c)[0], shadow=shadow)
            tokens = [step[0][1] for step in decode(lm, [row], DIRECTIONS, sample, store=store)]
            assert_as_naive(lm, row, Completion("", tuple(tokens), False))
    assert prompt in store


@pytest.mark.parametrize("first_dose", [0, 1])
def test_the_blocks_below_the_first_steered_one_read_each_prompt_once(lm, first_dose):
    """What sharing is for: rows through the first and the last block, with a base lane and without."""
    doses_BL = torch.cat([coefficients(4, (2,), float(dose)) for dose in range(first_dose, 6)])
    rows = {0: 0, 3: 0}
    hooks = [
        lm.blocks[layer].self_attn.register_forward_hook(
            lambda _m, _i, output, layer=layer: rows.__setitem__(layer, rows[layer] + len(output[0]))
        )
        for layer in rows
    ]
    with torch.inference_mode():
        PlainForward(lm, DIRECTIONS).begin([(2, 9, 8, 7)] * len(doses_BL), doses_BL, 1)
    for hook in hooks:
        hook.remove()
    assert rows == {0: 1, 3: 1 + 5}
