"""The decode loop against the slow way: one row, no cache, the whole text read anew for every token."""

from functools import cache

import pytest
import torch

from steer_heal.config import SampleSettings
from steer_heal.forward.plain import PlainForward
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.generate.rows import Lane
from steer_heal.models import user
from steer_heal.records import Completion
from steer_heal.vectors.steering import coefficients, steer
from tests.close import assert_near, model_rounding

N = 8
TEXTS = ["hi", "What would you do if it rained all day long?", "Tell me of bees, please."]


def directions(seed=0):
    made = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed))
    return made / made.norm(dim=-1, keepdim=True)


DIRECTIONS = directions()


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


def lanes_of(lm):
    return [
        Lane(row.prompt_ids, torch.zeros(4) if row.coefficients_L is None else row.coefficients_L, noise)
        for row in rows_of(lm)
        for noise in (0, 1)
    ]


@pytest.mark.parametrize("only_steered", [False, True])
def test_sharing_the_prompts_work_changes_nothing(lm, only_steered):
    lanes = [lane for lane in lanes_of(lm) if lane.steered or not only_steered]
    prompts = [lane.prompt_ids for lane in lanes]
    coefficients_BL = torch.stack([lane.coefficients_L for lane in lanes])
    with torch.inference_mode():
        forward = PlainForward(lm, DIRECTIONS)
        shared, apart = (
            forward.begin(prompts, coefficients_BL, 3),
            forward.apart(prompts, coefficients_BL, 3),
        )
    assert_near(shared.logits_BV, apart.logits_BV, model_rounding(lm))
    assert torch.equal(shared.positions_B, apart.positions_B)
    assert torch.equal(shared.mask_BT, apart.mask_BT)
    real_B1T1 = apart.mask_BT[:, None, :, None].bool()
    for one, other in zip(shared.cache.layers, apart.cache.layers, strict=True):
        assert_near(one.keys * real_B1T1, other.keys * real_B1T1, model_rounding(lm))
        assert_near(one.values * real_B1T1, other.values * real_B1T1, model_rounding(lm))


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


def test_hook_against_hidden_states(lm):
    """What block 2 reads is the residual that transformers reports there, plus c * v[1]."""
    ids = torch.tensor([[2, 5, 30, 31, 32]])
    read = []
    with torch.no_grad():
        states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        handle = lm.blocks[2].register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))
        with steer(lm.blocks, DIRECTIONS, coefficients(4, (1,), 3.0)):
            lm.model(input_ids=ids)
        handle.remove()
    assert_near(read[0], states[2] + 3.0 * DIRECTIONS[1], model_rounding(lm))


def test_greedy_base_is_what_generate_writes(lm):
    for row in rows_of(lm)[::3]:
        found = complete(
            lm, [Row(row.prompt_ids)], DIRECTIONS, SampleSettings(max_new_tokens=N, greedy=True)
        )[0]
        ids = torch.tensor([row.prompt_ids])
        with torch.no_grad():
            whole = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=N,
                eos_token_id=sorted(lm.eos_ids),
                pad_token_id=lm.pad_id,
            )
        assert [token.id for token in found.tokens] == whole[0, ids.shape[1] :].tolist()
