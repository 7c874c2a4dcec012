"""The lean forward's blocks: tokens some at a time, rotary tables, the bound on attention's scores."""

import math
from functools import partial

import pytest
import torch

from steer_heal.generate.lean import Network, network
from steer_heal.generate.lean.attention import causal
from tests import tiny
from tests.close import assert_near, model_rounding

N = 37


def through(lm, hidden_ND):
    """The residual behind all blocks, and how many tokens went through an MLP together."""
    net = Network(lm)
    turns = net.turns(N, hidden_ND)

    def by_itself(q, k, v, block):
        return causal(q[None], k[None], v[None], block.scale, block.window)[0].flatten(1)

    with torch.inference_mode():
        for block in net.blocks:
            attend = partial(by_itself, block=block)
            hidden_ND = block.forward(hidden_ND, turns[block.rotary], net.head_dim, attend)
    return hidden_ND, net.blocks[0].at_once


def room_for(lm, n_tokens):
    return math.ceil(n_tokens * lm.config.intermediate_size / torch.get_num_threads())


@pytest.mark.parametrize("arch", tiny.ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_go_through_the_mlp_some_at_a_time_or_all_at_once(arch, dtype, monkeypatch):
    lm = tiny.language_model(arch)
    lm.model.to(dtype)
    hidden_ND = torch.randn(N, lm.width, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = hidden_ND.clone()
    monkeypatch.setattr(network, "FEWEST_PARTED", 1)
    monkeypatch.setattr(network, "IN_CACHE", room_for(lm, 10))
    some, few = through(lm, hidden_ND)
    monkeypatch.setattr(network, "IN_CACHE", room_for(lm, N))
    whole, all_of_them = through(lm, hidden_ND)
    assert few < N <= all_of_them
    assert torch.equal(hidden_ND, before)
    assert_near(some, whole, model_rounding(lm))


def test_few_tokens_are_not_parted(monkeypatch):
    lm = tiny.shared()
    monkeypatch.setattr(network, "IN_CACHE", room_for(lm, 10))
    assert Network(lm).blocks[0].at_once > 1 << 30


@pytest.mark.parametrize("arch", tiny.ARCHS)
def test_rotary_tables_are_the_models_whichever_was_asked_for_first(arch):
    lm = tiny.shared(arch)
    like, net = torch.zeros(1), Network(lm)
    longest = Network(lm).turns(90, like)
    for n in (5, 90, 7):
        for name, turn in net.turns(n, like).items():
            assert torch.equal(turn.cos_N1d, longest[name].cos_N1d[:n])
            assert torch.equal(turn.sin_N1d, longest[name].sin_N1d[:n])


@pytest.mark.parametrize("arch", ["gemma3", "qwen3"])
def test_no_score_is_above_its_bound_however_steered(arch):
    lm = tiny.language_model(arch)
    torch.manual_seed(0)
    for block in lm.model.model.layers:
        for norm in (block.self_attn.q_norm, block.self_attn.k_norm):
            norm.weight.data = torch.randn_like(norm.weight)
    net = Network(lm)
    turns = net.turns(N, torch.zeros(1))
    for block in net.blocks:
        largest = 0.0
        for size in (0.01, 1.0, 1000.0):
            x_ND = size * torch.randn(N, lm.width)
            q, k = (
                turns[block.rotary].rotate(norm(made.unflatten(-1, (-1, net.head_dim))))
                for made, norm in zip(block.qkv(x_ND)[:2], (block.q_norm, block.k_norm), strict=True)
            )
            largest = max(largest, float(torch.einsum("nhd,mkd->nmhk", q, k).abs().max()) * block.scale)
        assert 0.0 < largest <= block.largest_score() < math.inf


def test_heads_that_nothing_norms_have_no_bound():
    assert {block.largest_score() for block in Network(tiny.shared("llama")).blocks} == {math.inf}


@pytest.mark.parametrize("n", [1, 9, 48, 49])
def test_a_shared_output_layer_gives_the_same_by_either_product(n):
    lm = tiny.language_model("gemma3")
    hidden_ND = torch.randn(n, lm.width, generator=torch.Generator().manual_seed(0))
    given, logits = [], Network(lm).logits(hidden_ND)
    lm.model.lm_head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert logits.is_contiguous()
    assert_near(logits, Network(lm).logits(hidden_ND), model_rounding(lm))
    assert len(given) == 1
