"""Our own blocks against transformers' own: prompts, steps, steering, padding, rows leaving, adapters."""

import pytest
import torch

from steer_heal.config import TrainSettings
from steer_heal.forward import PrefixStore, shared_prompts
from steer_heal.forward.attention import HIDDEN, attend, explicit
from steer_heal.forward.known import is_known
from steer_heal.forward.ours import OurForward
from steer_heal.forward.plain import PlainForward
from steer_heal.generate import Row
from steer_heal.generate.rows import Lane, plan
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import assert_near, model_rounding, rounding
from tests.rounds import healed

N_STEPS = 11
"""Beyond the tiny Gemma's window of 8, also for the shortest prompt."""


def prompts(lm, *lengths):
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(6, 250, (n,), generator=generator).tolist()) for n in lengths]


def lanes_of(lm, rows):
    return plan(rows, (lm.n_layers,)).lanes


def at(lm, c, *layers):
    return coefficients(lm.n_layers, layers, c)[0]


def one_prompt(lm):
    (prompt,) = prompts(lm, 13)
    return lanes_of(lm, [Row(prompt), *(Row(prompt, at(lm, c, 1, 2), shadow=True) for c in (2.0, -3.0, 5.0))])


def many_prompts(lm):
    """Of other lengths, some with many rows and some with one; other layers; two noises of one dose."""
    a, b, c = prompts(lm, 5, 17, 11)
    rows = [Row(c, at(lm, dose, 1, 2), shadow=True) for dose in (2.0, 3.0)]
    rows += [Row(a), Row(a, at(lm, 4.0, 3), shadow=True), Row(b, at(lm, -3.0, 1), rng_stream=1)]
    rows += [Row(b, at(lm, -3.0, 1), rng_stream=n) for n in (2, 3)] + [Row(c, rng_stream=7)]
    return lanes_of(lm, rows)


def one_row_a_prompt(lm):
    return lanes_of(lm, [Row(p, at(lm, 3.0, 1)) for p in prompts(lm, 9, 4, 16)])


def only_base(lm):
    return lanes_of(lm, [Row(p, rng_stream=n) for p in prompts(lm, 9, 4) for n in range(3)])


def first_and_last_block(lm):
    (prompt,) = prompts(lm, 12)
    return lanes_of(lm, [Row(prompt, at(lm, 3.0, 0), shadow=True), Row(prompt, at(lm, 9.0, lm.n_layers - 1))])


def only_last_block(lm):
    a, b = prompts(lm, 12, 7)
    return lanes_of(lm, [Row(p, at(lm, 6.0, lm.n_layers - 1), shadow=True) for p in (a, b)])


CASES = (one_prompt, many_prompts, one_row_a_prompt, only_base, first_and_last_block, only_last_block)


def begun(kind, lm, lanes, n_new, store=None):
    """The lanes' prompts read by one of the two forwards."""
    coefficients_BL = torch.stack([lane.coefficients_L for lane in lanes])
    n_more = sum(lane.n_more for lane in lanes)
    prompts = [lane.prompt_ids for lane in lanes]
    return kind(lm, tiny.directions(lm)).begin(prompts, coefficients_BL, n_new, n_more=n_more, store=store)


def read(rows, ids):
    rows.read(torch.tensor(ids)[:, None])


def assert_same(lm, lanes, store=None):
    """Both readers over the same tokens; on the way, base lanes part, half of all leave, then all but one."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        ours = begun(OurForward, lm, lanes, N_STEPS, store)
        plain = begun(PlainForward, lm, lanes, N_STEPS)
        assert_near(ours.logits_BV, plain.logits_BV, model_rounding(lm))
        n = len(lanes)
        twice = [number for number, lane in enumerate(lanes) if not lane.steered]
        for step in range(N_STEPS):
            if step in (2, 4, 8) and n > 1:
                kept = {2: [*range(n), *twice], 4: list(range(0, n, 2)), 8: [n - 1]}[step]
                ours.keep(kept)
                plain.keep(kept)
                n = len(kept)
            ids = torch.randint(6, 250, (n,), generator=generator).tolist()
            read(ours, ids)
            read(plain, ids)
            assert_near(ours.logits_BV, plain.logits_BV, model_rounding(lm))


@pytest.fixture(params=[False, True], ids=["copied prompts", "shared prompts"])
def shared(request, monkeypatch):
    """Every batch of two rows a prompt or more shares them or not, whatever copies take."""
    monkeypatch.setattr(shared_prompts, "CACHE_BYTES", 0 if request.param else 2**40)
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_logits_after_prompts_steps_and_rows_leaving(lm, shared, case):
    assert is_known(lm)
    assert_same(lm, case(lm))


def test_the_store_gives_the_same_again(lm, shared):
    store = PrefixStore()
    for case in (one_prompt, one_prompt, first_and_last_block, many_prompts, one_prompt):
        assert_same(lm, case(lm), store)


def test_a_store_that_keeps_one_layer_reads_again_for_another(lm):
    store = PrefixStore(every_layer=False)
    for case in (one_prompt, only_last_block, first_and_last_block, only_base):
        assert_same(lm, case(lm), store)


def test_bfloat16(arch):
    """In the mean over models as near to the same in float32 as transformers' own bfloat16 is.

    Of one model the two errors differ by an eighth by chance, so the means of eight by a twentieth.
    """
    off = torch.zeros(2)
    for seed in range(8):
        exact, rough = tiny.language_model(arch, seed=seed), tiny.language_model(arch, seed=seed)
        rough.model.to(torch.bfloat16)
        lanes = many_prompts(exact)
        with torch.inference_mode():
            true = begun(PlainForward, exact, lanes, 2)
            ours, plain = (begun(kind, rough, lanes, 2) for kind in (OurForward, PlainForward))
            for _ in range(2):
                off += torch.stack([(one.logits_BV - true.logits_BV).norm() for one in (ours, plain)])
                for rows in (true, ours, plain):
                    read(rows, [9] * len(lanes))
    assert off[0] < 1.25 * off[1]


def test_a_lora_adapter_is_part_of_the_model(arch, shared):
    lm = tiny.language_model(arch)
    lanes = many_prompts(lm)
    with torch.inference_mode():
        before = begun(OurForward, lm, lanes, 2).logits_BV
    stack = healed(lm, settings=TrainSettings(rank=4), size=0.1)
    assert is_known(lm)
    assert_same(lm, lanes)
    with torch.inference_mode():
        assert not torch.allclose(begun(OurForward, lm, lanes, 2).logits_BV, before, atol=1e-2)
        with stack.off():
            assert_near(begun(OurForward, lm, lanes, 2).logits_BV, before, model_rounding(lm))


def test_a_prompt_of_many_rows_is_kept_once_where_copies_would_not_stay_in_the_cache(lm, shared):
    (prompt,) = prompts(lm, 13)
    doses = [Row(prompt, at(lm, c, 1)) for c in (1.0, 2.0, 3.0)]
    with torch.inference_mode():
        many = begun(OurForward, lm, lanes_of(lm, [Row(prompt), *doses]), 2)
        alone = begun(OurForward, lm, one_row_a_prompt(lm), 2)
    assert bool(many.held.shared) == shared
    assert not alone.held.shared


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
        begun(OurForward, lm, lanes_of(lm, rows), 2)
    assert tokens == {0: 13, 1: 13, 2: 13 * (3 + with_base), 3: 13 * (3 + with_base)}


def test_attention_in_plain_operations_is_the_kernels():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, generator=generator) for n in (4, 9, 9))
    mask = torch.zeros(3, 1, 1, 9)
    mask[1, ..., 5:] = mask[2] = HIDDEN
    for some in (None, mask):
        for one, other in zip(attend(q, k, v, 0.3, some), explicit(q, k, v, 0.3, some), strict=True):
            assert_near(one, other, rounding(8 + 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_row_is_the_unsteered_model_to_the_bit_whatever_is_beside_it(arch, shared, dtype):
    """In a batch of one shape: rows of one prompt or of several, tokens of their own, rows leaving."""
    lm = tiny.language_model(arch)
    lm.model.to(dtype)
    a, b, c = prompts(lm, 13, 5, 16)
    zero = torch.zeros(lm.n_layers)
    for of_row in ((a,) * 9, (b, a, a, b, c, c, a, b, c), (a, b, c)):
        doses = [at(lm, dose - 4.0, 1, 2) for dose in range(len(of_row))]
        doses[0] = doses[len(doses) // 2] = zero
        batches = [
            [Lane(prompt, row_L, n) for n, (prompt, row_L) in enumerate(zip(of_row, rows, strict=True))]
            for rows in (doses, [zero] * len(doses))
        ]
        with torch.inference_mode():
            steered, base = (begun(OurForward, lm, lanes, N_STEPS) for lanes in batches)
            for step in range(N_STEPS):
                rows = [row for row, dose in enumerate(doses) if not dose.any()]
                assert torch.equal(steered.logits_BV[rows], base.logits_BV[rows])
                if step == 5:
                    doses.pop(1)
                    for some in (steered, base):
                        some.keep([0, *range(2, len(doses) + 1)])
                for some in (steered, base):
                    read(some, [7 * step + row for row in range(len(doses))])
            assert not torch.allclose(steered.logits_BV, base.logits_BV, atol=1e-2)
