"""The lean forward against transformers' own: prompts, steps, steering, padding, rows leaving, adapters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.generate import Row, forward_used
from steer_heal.generate.lean import LeanReader, Network, why_not
from steer_heal.generate.lean.attention import HIDDEN, attend, explicit, segments
from steer_heal.generate.lean.keys import OwnKeys, SharedKeys
from steer_heal.generate.lean.prompts import read
from steer_heal.generate.plain import PlainReader
from steer_heal.generate.rows import Lane, plan
from steer_heal.generate.store import PrefixStore
from steer_heal.models import load
from steer_heal.steering import coefficients
from tests import tiny

N_STEPS = 11
"""Beyond the tiny Gemma's window of 8, also for the shortest prompt."""


def directions(lm):
    made = torch.randn(lm.n_layers, lm.width, generator=torch.Generator().manual_seed(3))
    return made / made.norm(dim=-1, keepdim=True)


def prompts(lm, *lengths):
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(6, 250, (n,), generator=generator).tolist()) for n in lengths]


def lanes_of(lm, rows):
    return plan(rows, lm.n_layers).lanes


def at(lm, c, *layers):
    return coefficients(lm.n_layers, layers, c)[0]


def one_prompt(lm):
    (prompt,) = prompts(lm, 13)
    return lanes_of(lm, [Row(prompt), *(Row(prompt, at(lm, c, 1, 2), shadow=True) for c in (2.0, -3.0, 5.0))])


def many_prompts(lm):
    """Of other lengths, some with many rows and some with one; other layers; two noises of one dose."""
    a, b, c = prompts(lm, 5, 17, 11)
    rows = [Row(c, at(lm, dose, 1, 2), shadow=True) for dose in (2.0, 3.0)]
    rows += [Row(a), Row(a, at(lm, 4.0, 3), shadow=True), Row(b, at(lm, -3.0, 1), noise=1)]
    rows += [Row(b, at(lm, -3.0, 1), noise=n) for n in (2, 3)] + [Row(c, noise=7)]
    return lanes_of(lm, rows)


def one_row_a_prompt(lm):
    return lanes_of(lm, [Row(p, at(lm, 3.0, 1)) for p in prompts(lm, 9, 4, 16)])


def only_base(lm):
    return lanes_of(lm, [Row(p, noise=n) for p in prompts(lm, 9, 4) for n in range(3)])


def first_and_last_block(lm):
    (prompt,) = prompts(lm, 12)
    return lanes_of(lm, [Row(prompt, at(lm, 3.0, 0), shadow=True), Row(prompt, at(lm, 9.0, lm.n_layers - 1))])


def only_last_block(lm):
    a, b = prompts(lm, 12, 7)
    return lanes_of(lm, [Row(p, at(lm, 6.0, lm.n_layers - 1), shadow=True) for p in (a, b)])


CASES = (one_prompt, many_prompts, one_row_a_prompt, only_base, first_and_last_block, only_last_block)


def assert_same(lm, lanes, store=None, rtol=1e-3, atol=3e-4):
    """Both readers over the same tokens; on the way, base lanes part, half of all leave, then all but one."""
    v = directions(lm)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        lean = LeanReader(lm, lanes, v, N_STEPS, store)
        plain = PlainReader(lm, lanes, v, N_STEPS, None)
        torch.testing.assert_close(lean.logits_BV, plain.logits_BV, rtol=rtol, atol=atol)
        n = len(lanes)
        twice = [number for number, lane in enumerate(lanes) if not lane.steered]
        for step in range(N_STEPS):
            if step in (2, 4, 8) and n > 1:
                kept = {2: [*range(n), *twice], 4: list(range(0, n, 2)), 8: [n - 1]}[step]
                lean.keep(kept)
                plain.keep(kept)
                n = len(kept)
            ids = torch.randint(6, 250, (n,), generator=generator).tolist()
            lean.advance(ids)
            plain.advance(ids)
            torch.testing.assert_close(lean.logits_BV, plain.logits_BV, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_logits_after_prompts_steps_and_rows_leaving(lm, case):
    assert why_not(lm) == ""
    assert_same(lm, case(lm))


def test_the_store_gives_the_same_again(lm):
    store = PrefixStore()
    for case in (one_prompt, one_prompt, first_and_last_block, many_prompts, one_prompt):
        assert_same(lm, case(lm), store)


def test_a_store_that_keeps_one_layer_reads_again_for_another(lm):
    store = PrefixStore(every_layer=False)
    for case in (one_prompt, only_last_block, first_and_last_block, only_base):
        assert_same(lm, case(lm), store)


def test_residuals_behind_every_block(lm):
    first, second = prompts(lm, 13, 6)
    with torch.inference_mode():
        found = read(Network(lm), [first, second], lm.n_layers, range(lm.n_layers), lm.device)
        for prompt, one in zip((first, second), found, strict=True):
            states = lm.model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            for layer in range(lm.n_layers - 1):
                torch.testing.assert_close(one.residuals[layer], states[layer + 1][0], rtol=1e-3, atol=1e-4)
            last = lm.model.model.norm(one.residuals[lm.n_layers - 1])
            torch.testing.assert_close(last, states[-1][0, -1:], rtol=1e-3, atol=1e-4)
    assert why_not(lm) == "", "what output_hidden_states leaves behind is harmless"


@pytest.mark.parametrize("case", [one_prompt, many_prompts])
def test_the_bundled_model(case):
    lm = load("demo", device="cpu")
    assert forward_used(lm, directions(lm)) == "lean forward"
    assert_same(lm, case(lm))


def test_bfloat16(arch):
    """In the mean over models as near to the same in float32 as transformers' own bfloat16 is."""
    off = torch.zeros(2)
    for seed in range(4):
        exact, rough = tiny.language_model(arch, seed=seed), tiny.language_model(arch, seed=seed)
        rough.model.to(torch.bfloat16)
        lanes, v = many_prompts(exact), directions(exact)
        with torch.inference_mode():
            true, lean, plain = (
                PlainReader(exact, lanes, v, 2, None),
                *(kind(rough, lanes, v, 2, None) for kind in (LeanReader, PlainReader)),
            )
            for _ in range(2):
                off += torch.stack([(one.logits_BV - true.logits_BV).norm() for one in (lean, plain)])
                for reader in (true, lean, plain):
                    reader.advance([9] * len(lanes))
    assert off[0] < 1.25 * off[1]


def test_a_lora_adapter_is_part_of_the_model(arch):
    lm = tiny.language_model(arch)
    lanes, v = many_prompts(lm), directions(lm)
    with torch.inference_mode():
        before = LeanReader(lm, lanes, v, 2, None).logits_BV
    stack = AdapterStack(lm)
    stack.fresh(1, TrainSettings(rank=4, layers="all"), seed=0)
    with torch.no_grad():
        for parameter in stack.trainable():
            parameter.normal_(std=0.1)
    stack.fold()
    assert why_not(lm) == ""
    assert_same(lm, lanes)
    with torch.inference_mode():
        assert not torch.allclose(LeanReader(lm, lanes, v, 2, None).logits_BV, before, atol=1e-2)
        with stack.off():
            torch.testing.assert_close(LeanReader(lm, lanes, v, 2, None).logits_BV, before)


def test_a_shared_prompt_is_kept_once_and_a_lone_rows_is_its_own(lm):
    (prompt,) = prompts(lm, 13)
    doses = [Row(prompt, at(lm, c, 1)) for c in (1.0, 2.0, 3.0)]
    with torch.inference_mode():
        shared = LeanReader(lm, lanes_of(lm, [Row(prompt), *doses]), directions(lm), 2, None)
        alone = LeanReader(lm, one_row_a_prompt(lm), directions(lm), 2, None)
    assert isinstance(shared._low, SharedKeys)
    assert isinstance(shared._steered, OwnKeys)
    assert isinstance(alone._low, OwnKeys)


@pytest.mark.parametrize("with_base", [True, False])
def test_below_the_first_steered_block_each_prompt_is_read_once(arch, with_base):
    """Tokens through the keys of each block; without base rows nothing unsteered is read above."""
    lm = tiny.language_model(arch)
    (prompt,) = prompts(lm, 13)
    tokens = dict.fromkeys(range(lm.n_layers), 0)
    for layer, block in enumerate(lm.blocks):

        def count(_module, inputs, _output, layer=layer):
            tokens[layer] += inputs[0].numel() // lm.width

        block.self_attn.k_proj.register_forward_hook(count)
    rows = [Row(prompt)] * with_base + [Row(prompt, at(lm, c, 1)) for c in (1.0, 2.0, 3.0)]
    with torch.inference_mode():
        LeanReader(lm, lanes_of(lm, rows), directions(lm), 2, None)
    assert tokens == {0: 13, 1: 13, 2: 13 * (3 + with_base), 3: 13 * (3 + with_base)}


def change_nothing(_module, _inputs, output):
    return output


def hook_a_block(lm):
    lm.blocks[1].register_forward_hook(change_nothing)


def hook_a_norm(lm):
    lm.model.model.norm.register_forward_pre_hook(lambda _module, _inputs: None)


def replace_a_forward(lm):
    lm.blocks[0].mlp.forward = lm.blocks[0].mlp.forward


def replace_a_norm(lm):
    lm.blocks[2].input_layernorm = torch.nn.RMSNorm(lm.width)


def another_attention(lm):
    lm.config._attn_implementation = "flex_attention"


def growing_rotary(lm):
    lm.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def training(lm):
    lm.model.train()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (hook_a_block, "hooked onto"),
        (hook_a_norm, "hooked onto"),
        (replace_a_forward, "hooked onto"),
        (replace_a_norm, "RMSNorm where"),
        (another_attention, "flex_attention"),
        (growing_rotary, "length of the text"),
        (training, "in training"),
    ],
)
def test_what_it_does_not_know_it_leaves_to_transformers(arch, change, word):
    lm = tiny.language_model(arch)
    change(lm)
    assert word in why_not(lm)
    assert forward_used(lm, directions(lm)).startswith("transformers' forward: ")


def test_a_method_with_hooks_of_its_own_goes_through_transformers(lm):
    assert "hooks of its own" in forward_used(lm, object())


def test_attention_in_plain_operations_is_the_kernels():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator) for n in (4, 9, 9))
    mask = torch.zeros(3, 1, 1, 9)
    mask[1, ..., 5:] = mask[2] = HIDDEN
    for some in (None, mask):
        for one, other in zip(attend(q, k, v, 0.3, some), explicit(q, k, v, 0.3, some), strict=True):
            torch.testing.assert_close(one, other)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_segments_cover_every_row_with_its_prefix(prefixes):
    given_back = []
    for part in segments(prefixes):
        each, rest = divmod(part.end - part.start, part.last - part.first)
        assert rest == 0
        assert part.start == len(given_back)
        given_back += [prefix for prefix in range(part.first, part.last) for _ in range(each)]
    assert given_back == prefixes


def test_lanes_without_steering_have_no_first_block(lm):
    (prompt,) = prompts(lm, 3)
    assert_same(lm, [Lane(prompt, torch.zeros(lm.n_layers))])


def test_a_zero_row_is_the_unsteered_model_whatever_is_beside_it(lm):
    """Up to the last bits: how many rows read a prompt together decides the order of the sums."""
    a, b = prompts(lm, 13, 5)
    beside = [[at(lm, c, 1, 2) for c in (2.0, -3.0, 5.0)], [torch.zeros(lm.n_layers)] * 3]
    batches = [
        [
            Lane(a, torch.zeros(lm.n_layers)),
            *(Lane(a, row_L, n + 1) for n, row_L in enumerate(rows)),
            Lane(b, rows[0], 9),
        ]
        for rows in beside
    ]
    with torch.inference_mode():
        steered, base = (LeanReader(lm, lanes, directions(lm), 4, None) for lanes in batches)
        torch.testing.assert_close(steered.logits_BV[0], base.logits_BV[0], rtol=1e-5, atol=1e-5)
        for token in (9, 30, 41):
            for reader in (steered, base):
                reader.advance([token] * 5)
            torch.testing.assert_close(steered.logits_BV[0], base.logits_BV[0], rtol=1e-5, atol=1e-5)
            assert not torch.allclose(steered.logits_BV[1], base.logits_BV[1], atol=1e-2)
