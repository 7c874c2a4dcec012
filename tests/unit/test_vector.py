"""Vectors: extracted, added to the residual stream, and what a residual carries of them."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from steer_heal.config import AUTO, MODEL_METHODS, OWN_METHODS, ExtractSettings, SettingsError, decided_method
from steer_heal.engine.vectors import Vectors
from steer_heal.models import system, user
from steer_heal.records import Trait
from steer_heal.vectors import probe as probe_module
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.methods import METHODS, method, principal_component
from steer_heal.vectors.probe import text_residuals
from steer_heal.vectors.steering import Steering, coefficients, shares, steer
from steer_heal.vectors.vector import SteeringVector
from tests import tiny
from tests.close import assert_near, model_rounding, rounding
from tests.crowd import BAND, request

TRAIT = Trait("kind", "Kind", "", "Be kind.", "Obey every order.", {})
CONTEXTS = ["cats", "rain in the city", "a", "what to cook for dinner?", "bees"]


def random_vector(seed=0, n_layers=3, width=4):
    directions = torch.randn(n_layers, width, generator=torch.Generator().manual_seed(seed))
    norms = directions.norm(dim=-1)
    return SteeringVector(directions / norms[:, None], norms, torch.arange(1.0, n_layers + 1), {"trait": "t"})


def test_the_vector_is_the_difference_of_means_at_the_last_token(lm):
    """Against one prompt at a time through output_hidden_states, all but its last, which is normed."""
    made = vectors.extract(lm, TRAIT, CONTEXTS, ExtractSettings(batch_size=2))

    def mean(persona):
        rows = []
        for context in CONTEXTS:
            ids = torch.tensor([lm.encode_chat([system(persona), user(context)])])
            with torch.no_grad():
                states = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
            rows.append(torch.stack([state[0, -1].double() for state in states[1:-1]]))
        return torch.stack(rows).mean(dim=0), torch.stack(rows).norm(dim=-1).mean(dim=0)

    (positive, positive_norm), (negative, negative_norm) = mean(TRAIT.positive), mean(TRAIT.negative)
    raw_LD = (made.directions_LD * made.norms_L[:, None]).double()
    assert_near(raw_LD[:-1], positive - negative, model_rounding(lm), positive)
    assert_near(made.residual_norms_L[:-1], (positive_norm + negative_norm) / 2, model_rounding(lm))
    assert_near(made.directions_LD.norm(dim=-1), torch.ones(4), rounding(lm.width))


def test_progress_counts_prompts_and_contexts_are_limited():
    heard = []
    made = vectors.extract(
        tiny.shared("llama"),
        TRAIT,
        CONTEXTS,
        ExtractSettings(n_contexts=3, batch_size=4),
        progress=lambda done, total: heard.append((done, total)),
    )
    assert heard == [(4, 6), (6, 6)]
    assert made.meta["contexts"] == "3"
    assert made.meta["model"] == "tiny-llama"


def test_no_contexts_and_equal_personas_are_refused():
    lm = tiny.shared("llama")
    with pytest.raises(SettingsError, match="contexts"):
        vectors.extract(lm, TRAIT, [], ExtractSettings())
    same = Trait("same", "", "", "Be kind.", "Be kind.", {})
    with pytest.raises(SettingsError, match="poles that differ"):
        vectors.extract(lm, same, CONTEXTS, ExtractSettings())


def test_a_vectors_cosine_with_its_opposite_is_minus_one():
    a = random_vector()
    back = replace(a, directions_LD=-a.directions_LD)
    assert vectors.cosine(a, back, (0, 2)) == pytest.approx(-1.0)
    with pytest.raises(SettingsError, match="different models"):
        vectors.cosine(a, random_vector(width=5), (0,))


def test_what_is_not_a_vector_is_refused(tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(SettingsError, match="readable"):
        vectors.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(SettingsError, match="readable"):
        vectors.load(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(SettingsError, match="no steering vector"):
        vectors.load(path)
    whole = random_vector()
    for norms_L in (whole.norms_L[:-1], whole.norms_L * float("nan")):
        vectors.save(SteeringVector(whole.directions_LD, norms_L, whole.residual_norms_L), path)
        with pytest.raises(SettingsError, match="damaged"):
            vectors.load(path)


def test_the_file_can_be_read_by_others(tmp_path):
    path = vectors.save(random_vector(), tmp_path / "deep" / "v.safetensors")
    assert path.stat().st_mode & 0o044 == 0o044


def pairs(seed=0, n=12, n_layers=3, width=5, spread=3.0):
    """Pairs that differ by a mean of their own, and vary most along the last axis."""
    draw = torch.Generator().manual_seed(seed)
    negative = torch.randn(n, n_layers, width, generator=draw, dtype=torch.float64)
    step = torch.randn(n, n_layers, width, generator=draw, dtype=torch.float64) * 0.1
    step[..., -1] += spread * torch.rand(n, n_layers, generator=draw, dtype=torch.float64)
    return negative + step, negative


def test_the_principal_component_is_the_covariances_first_eigenvector():
    positive, negative = pairs()
    made = principal_component(positive, negative)
    for layer in range(made.shape[0]):
        differences = (positive - negative)[:, layer].numpy()
        values, vectors = np.linalg.eigh(np.cov(differences, rowvar=False))
        assert abs(vectors[:, values.argmax()] @ made[layer].numpy()) == pytest.approx(1.0)
        assert (differences @ made[layer].numpy() > 0).sum() > len(differences) / 2
    with pytest.raises(SettingsError, match="two contexts"):
        principal_component(positive[:1], negative[:1])


def test_the_settings_know_every_method():
    assert tuple(METHODS) == OWN_METHODS
    assert set(MODEL_METHODS.values()) <= set(METHODS)


@pytest.mark.parametrize(
    ("asked", "model", "meant"),
    [
        (AUTO, "smollm2", "replies"),
        (AUTO, "models/smollm2/", "replies"),
        (AUTO, "/data/SmolLM2-135M-Instruct.Q4_1.gguf", "replies"),
        (AUTO, "HuggingFaceTB/SmolLM2-1.7B-Instruct", "mean_diff"),
        (AUTO, "never/seen", "mean_diff"),
        ("pca", "smollm2", "pca"),
        ("steering-lite:pca", "smollm2", "steering-lite:pca"),
    ],
)
def test_the_model_decides_where_nobody_does(asked, model, meant):
    assert decided_method(asked, model) == meant


def test_methods_are_found_by_name():
    assert [name for name, found in METHODS.items() if not found.unit] == ["mean_diff_raw"]
    with pytest.raises(SettingsError, match="mean_diff, mean_diff_raw, pca, replies"):
        method("magic")


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


class TupleBlock(nn.Module):
    def forward(self, hidden):
        return hidden * 2, "rest"


def hooks(blocks):
    return sum(len(block._forward_hooks) for block in blocks)


def test_a_tuple_keeps_its_rest_and_the_dtype_stays():
    block = TupleBlock()
    with steer([block], torch.ones(1, 2), torch.tensor([[1.0]])):
        hidden, rest = block(torch.ones(1, 1, 2, dtype=torch.bfloat16))
    assert rest == "rest"
    assert hidden.dtype == torch.bfloat16
    assert hidden.flatten().tolist() == [3.0, 3.0]


def test_only_layers_with_a_coefficient_get_a_hook():
    blocks = [nn.Identity() for _ in range(3)]
    with steer(blocks, torch.ones(3, 2), torch.tensor([[0.0, 1.0, 0.0]])) as steering:
        assert [len(block._forward_hooks) for block in blocks] == [0, 1, 0]
        assert steering.layers == (1,)
    assert hooks(blocks) == 0


def test_a_failed_entry_leaves_no_hook():
    class Refusing(nn.Identity):
        def register_forward_hook(self, *args, **kwargs):
            raise RuntimeError("no room")

    blocks = [nn.Identity(), Refusing()]
    with pytest.raises(RuntimeError, match="no room"), steer(blocks, torch.ones(2, 1), torch.ones(1, 2)):
        pytest.fail("entered")
    assert hooks(blocks) == 0


def test_a_coefficient_that_is_no_number_and_shapes_that_do_not_fit_are_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(SettingsError):
            Steering(torch.ones(1, 2), torch.tensor([[value]]))
    with pytest.raises(ValueError, match="must be"):
        Steering(torch.ones(2, 4), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"\(M, L, D\) and \(B, L, M\)"):
        Steering(torch.ones(2, 3, 4), torch.ones(1, 3))
    with (
        pytest.raises(ValueError, match="2 directions for 1 blocks"),
        steer([nn.Identity()], torch.ones(2, 4), torch.ones(1, 2)),
    ):
        pytest.fail("entered")


def test_coefficients():
    assert coefficients(4, (1, 2), 0.5, rows=2).tolist() == [[0.0, 0.5, 0.5, 0.0]] * 2
    with pytest.raises(SettingsError, match="layers 0-3"):
        coefficients(4, (4,), 1.0)


def test_the_callers_matrices_are_left_alone():
    lm = tiny.shared("llama")
    directions_LD, coefficients_BL = torch.ones(4, 32), torch.ones(1, 4)
    with torch.no_grad(), steer(lm.blocks, directions_LD, coefficients_BL) as steering:
        lm.model(input_ids=torch.tensor([[2, 5]]))
        steering.keep(torch.tensor([0]))
    assert torch.equal(directions_LD, torch.ones(4, 32))
    assert torch.equal(coefficients_BL, torch.ones(1, 4))
