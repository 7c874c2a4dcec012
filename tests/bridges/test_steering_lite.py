"""With steering-lite itself (skipped where it is not installed): files, vectors, methods and c*."""

from dataclasses import replace

import pytest
import torch

from steer_heal.config import CalibrateSettings, ExtractSettings, SettingsError
from steer_heal.dose.calibrate import calibrate
from steer_heal.engine.vectors import Vectors
from steer_heal.models import load, system, user
from steer_heal.vectors import formats
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.bridges import steering_lite as bridge
from steer_heal.vectors.rowwise import RowwiseSteering
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.unit.test_vector import CONTEXTS, TRAIT, random_vector

sl = pytest.importorskip("steering_lite")

IDS = [[2, 9, 30, 31], [2, 40, 41, 42]]


def texts(lm, persona):
    """As steering-lite takes prompts: rendered text, whose BOS its tokenizer call would double."""
    return [
        lm.tokenizer.apply_chat_template(
            [system(persona), user(context)], tokenize=False, add_generation_prompt=True
        )
        for context in CONTEXTS
    ]


def logits(lm, ids):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor(ids)).logits


@pytest.fixture(scope="module")
def demo():
    return load("demo", device="cpu")


def test_a_vector_saved_here_loads_there_bit_for_bit(tmp_path):
    made = random_vector(n_layers=5, width=8)
    path = formats.write(made, tmp_path / "v.safetensors", format="steering-lite", coefficient=2.5)
    theirs = sl.Vector.load(str(path))
    assert type(theirs.cfg).__name__ == "MeanDiffC"
    assert (theirs.cfg.coeff, theirs.cfg.dtype) == (2.5, torch.float32)
    assert all(torch.equal(theirs.state[layer]["v"], made.directions_LD[layer]) for layer in range(5))
    theirs.save(str(tmp_path / "w.safetensors"))
    assert torch.equal(formats.read(tmp_path / "w.safetensors").directions_LD, made.directions_LD)


@pytest.mark.parametrize("config", [sl.MeanDiffC, sl.PCAC])
def test_a_vector_saved_there_loads_here_bit_for_bit(config, tmp_path):
    state = {layer: {"v": torch.randn(8)} for layer in (2, 3)}
    sl.Vector(config(layers=(2, 3), coeff=1.5), state).save(str(tmp_path / "v.safetensors"))
    ours = formats.read(tmp_path / "v.safetensors", n_layers=6)
    assert all(torch.equal(ours.directions_LD[layer], state[layer]["v"]) for layer in state)
    back = sl.Vector.load(
        str(formats.write(ours, tmp_path / "w.safetensors", format="steering-lite", coefficient=None))
    )
    assert back.cfg.to_dict() | {"layers": (2, 3)} == config(layers=(2, 3), coeff=1.5).to_dict()
    assert all(torch.equal(back.state[layer]["v"], state[layer]["v"]) for layer in state)


def test_the_same_vector_on_the_same_ids(demo):
    """Ours, theirs through the bridge, and theirs by their own loop (this tokenizer adds no second BOS)."""
    ours = vectors.extract(demo, TRAIT, CONTEXTS, ExtractSettings())
    bridged = bridge.directions(
        bridge.extract(demo, TRAIT, CONTEXTS, "steering-lite:mean_diff", ExtractSettings())
    )
    demo.tokenizer.padding_side = "left"
    config = sl.MeanDiffC(dtype=torch.float32)
    theirs = sl.train(
        demo.model, demo.tokenizer, texts(demo, TRAIT.positive), texts(demo, TRAIT.negative), config
    )
    for layer in range(demo.n_layers):
        for other in (bridged[layer], theirs.state[layer]["v"]):
            cosine = torch.cosine_similarity(ours.directions_LD[layer].double(), other.double(), dim=0)
            assert cosine > 0.99999


def test_c_star_is_theirs_within_two_percent(demo):
    """Both to the same 95th percentile of KL over greedy rollouts of 20 tokens from the same ids."""
    layers = (4, 5)
    vector = vectors.extract(demo, TRAIT, CONTEXTS, ExtractSettings())
    prompts = [demo.encode_chat([user(text)]) for text in ("Tell me about the harbour.", "How are you?")]
    ours = calibrate(demo, vector, layers, prompts, CalibrateSettings(n_tokens=20))
    theirs = sl.Vector(
        sl.MeanDiffC(layers=layers, dtype=torch.float32),
        {layer: {"v": vector.directions_LD[layer]} for layer in layers},
    )
    words = demo.tokenizer
    own_end = words.eos_token
    words.eos_token = "<end_of_turn>"
    try:
        c_star, _ = sl.calibrate_iso_kl(
            theirs,
            demo.model,
            words,
            [torch.tensor(ids) for ids in prompts],
            bracket=(0.1, 1024.0),
            tol=0.01,
            device="cpu",
        )
    finally:
        words.eos_token = own_end
    assert ours.reached
    assert c_star == pytest.approx(ours.c_star, rel=0.02)


@pytest.mark.parametrize("name", sorted(bridge.methods()))
def test_every_method_steers_its_row_and_no_other(name):
    """A row under the matrix is what the package's own context makes of that row alone."""
    lm = tiny.shared("llama")
    made = bridge.extract(lm, TRAIT, CONTEXTS, name, ExtractSettings())
    coefficients = torch.zeros(2, lm.n_layers)
    coefficients[0, 1:3] = 0.5
    before = logits(lm, IDS)
    with RowwiseSteering(made, coefficients).attached(lm.blocks):
        found = logits(lm, IDS)
    assert torch.equal(found[1], before[1])
    assert torch.equal(logits(lm, IDS), before)
    config = replace(made.config, layers=(1, 2), coeff=0.5)
    with sl.Vector(config, made.state)(lm.model):
        expected = logits(lm, IDS[:1])
    assert_near(found[:1], expected, model_rounding(lm))
    # chars moves a residual only near the clusters it was fitted on, and these prompts are not.
    assert name.endswith("chars") or not torch.allclose(found[0], before[0], rtol=0, atol=1e-6)


def test_what_is_additive_is_known():
    additive = {name for name, title in bridge.methods().items() if "one row at a time" not in title}
    assert additive == {"steering-lite:mean_diff", "steering-lite:pca"}
    lm = tiny.shared("llama")
    with pytest.raises(SettingsError, match="Unknown method"):
        bridge.extract(lm, TRAIT, CONTEXTS, "steering-lite:magic", ExtractSettings())


@pytest.mark.parametrize("name", ["spherical", "cosine_gated", "directional_ablation"])
def test_a_method_that_adds_no_direction_has_a_dose_of_one_nat(name, tmp_path):
    """c* through the same search as ours, each row asked alone; turning is looked for within one turn."""
    lm = tiny.language_model("llama", n_layers=5)
    steer = Vectors(lm, tmp_path).steer("care_over_authority", (0.2, 0.8), f"steering-lite:{name}")
    assert steer.calibration.reached, steer.calibration.message
    assert steer.calibration.kl_p95 == pytest.approx(1.0, rel=0.05)
