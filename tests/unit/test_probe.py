"""What tokens carry of the trait: live, from memory and by a pass of transformers' own they are the same."""

from contextlib import ExitStack

import pytest
import torch

from steer_heal.engine.vectors import Vectors
from steer_heal.models import user
from steer_heal.vectors import probe as probe_module
from steer_heal.vectors.probe import text_residuals
from steer_heal.vectors.steering import coefficients, shares, steer
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.crowd import BAND, request

LAYERS = (1, 2)


def by_hand(lm, found, prompt, ids, gate="both", dose=0.0):
    """z of each token but the last, the mean over the layers, from residuals of one pass over the text."""
    neutral_NLD = text_residuals(lm, lm.material.neutral_prompts())
    units_LD = torch.nn.functional.normalize(found.directions_LD, dim=-1)
    along_NL = torch.einsum("nld,ld->nl", neutral_NLD, units_LD)
    read, taken = [*prompt, *ids[:-1]], {}
    doses_BL = coefficients(lm.n_layers, LAYERS, dose)
    gated_BT = shares(gate, [(len(prompt), len(ids) - 1)])
    with torch.no_grad(), steer(lm.blocks, found.directions_LD, doses_BL, gated_BT), ExitStack() as hooks:
        for layer in LAYERS:

            def take(_block, _inputs, output, layer=layer):
                taken[layer] = output[0] if isinstance(output, tuple) else output

            hooks.callback(lm.blocks[layer].register_forward_hook(take).remove)
        lm.model(torch.tensor([read]))
    z_KT = [
        (taken[layer][0, len(prompt) :] @ units_LD[layer] - along_NL[:, layer].mean())
        / along_NL[:, layer].std()
        for layer in LAYERS
    ]
    return torch.stack(z_KT).mean(dim=0)


@pytest.mark.parametrize("gate", ["both", "answer", "first 3"])
def test_what_is_seen_while_it_is_written_is_what_one_pass_gives(engine, measured, gate):
    lm = tiny.endless()
    asked = request(f"Who is there, {gate}?", alpha=2.0).model_copy(update={"carried": True, "where": gate})
    last = list(engine.steer(asked, session="x"))[-1]
    again = list(engine.steer(asked.model_copy(update={"alpha": -1.0}), session="x"))[-1]
    dosed = Vectors(lm, measured).steer(asked.trait, BAND)
    prompt = lm.encode_chat([user(asked.prompt)])
    ids = [token.id for token in last.steered]
    wanted = by_hand(lm, dosed.vector, prompt, ids, gate, 2.0 * dosed.c_star)
    tolerance = 10 * model_rounding(lm)
    assert_near([token.carries for token in last.steered[:-1]], wanted, tolerance)
    assert last.steered[-1].carries is None
    of_base = by_hand(lm, dosed.vector, prompt, [token.id for token in last.base])
    assert_near([token.carries for token in last.base[:-1]], of_base, tolerance)
    assert_near([token.carries for token in again.base[:-1]], of_base, tolerance)


def test_nobody_who_does_not_ask_is_told(engine):
    last = list(engine.steer(request("Nobody asks."), session="x"))[-1]
    assert {token.carries for token in (*last.base, *last.steered)} == {None}


def test_neutral_text_is_the_users_words_alone():
    lm = tiny.shared("llama")
    texts = ["one two", "a longer one, three", "zero"]
    found_NLD = text_residuals(lm, texts)
    rows = [lm.encode_chat([user(text)]) for text in texts]
    own = [lm.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert len(found_NLD) == sum(map(len, own))
    start = len(found_NLD) - len(own[-1])
    with torch.no_grad():
        states = lm.model(torch.tensor([rows[-1]]), output_hidden_states=True).hidden_states
    at = next(n for n in range(len(rows[-1])) if rows[-1][n : n + len(own[-1])] == own[-1])
    assert_near(found_NLD[start:, 0], states[1][0, at : at + len(own[-1])], model_rounding(lm))


def test_neutral_text_is_read_once(tmp_path, monkeypatch):
    lm, asked = tiny.shared("llama"), ("care_over_authority", "mean_diff", LAYERS)
    first = Vectors(lm, tmp_path).probe(*asked)
    monkeypatch.delattr(probe_module, "text_residuals")
    again = Vectors(lm, tmp_path).probe(*asked)
    assert first is not None
    assert again is not None
    for layer in LAYERS:
        first.look(layer, torch.ones(1, 1, lm.width))
        again.look(layer, torch.ones(1, 1, lm.width))
    assert first.seen_BK == again.seen_BK
