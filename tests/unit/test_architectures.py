"""Families that no tiny model is of, from their config with random weights, saved to a folder and loaded."""

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from steer_heal.config import ExtractSettings, SampleSettings, SettingsError
from steer_heal.forward import holds_on
from steer_heal.generate import Row, complete
from steer_heal.heal.adapters import target_modules
from steer_heal.models import band_layers, find_blocks, layers_band, load, system, user
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.property.test_steered_rows import assert_as_alone
from tests.unit.test_vector import CONTEXTS, TRAIT

FAMILIES = ("gemma3-multimodal", "mistral", "qwen2", "gpt2")
N_LAYERS, WIDTH = 4, 32


def network(family, vocab_size):
    shape = tiny.shape_of(vocab_size, N_LAYERS)
    common = {key: shape[key] for key in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "mistral":
            return MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
        if family == "qwen2":
            sliding = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
            made = Qwen2ForCausalLM(Qwen2Config(**shape, **sliding))
            for name, values in made.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(values)
            return made
        if family == "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(**common, n_embd=WIDTH, n_layer=N_LAYERS, n_head=4, n_positions=512)
            )
        text = Gemma3TextConfig(**shape, sliding_window=8, query_pre_attn_scalar=8)
        vision = SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        return Gemma3ForConditionalGeneration(
            Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=3)
        )


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request, tmp_path_factory):
    folder, words = tmp_path_factory.mktemp(request.param), tiny.tokenizer()
    network(request.param, len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return load(str(folder), device="cpu")


def test_our_own_blocks_compute_those_that_they_know(lm):
    known = isinstance(lm.model, MistralForCausalLM | Qwen2ForCausalLM)
    assert holds_on(lm, torch.zeros(N_LAYERS, WIDTH)) is known


def test_the_text_models_blocks_are_found_and_adapters_go_on_their_linear_layers(lm):
    assert (lm.n_layers, lm.width) == (N_LAYERS, WIDTH)
    assert not any("vision" in path for path, module in lm.model.named_modules() if module in lm.blocks)
    assert target_modules(lm)
    assert not any("vision" in name for name in target_modules(lm))


def test_base_and_steered_are_written_side_by_side(lm):
    """With the cache, each row is what a pass with hooks of the test's own gives it alone."""
    made = vectors.extract(lm, TRAIT, CONTEXTS, ExtractSettings(batch_size=2))
    prompt = tuple(lm.encode_chat([system("Be kind."), user("what is rain?")]))
    rows = [Row(prompt, coefficients(N_LAYERS, (1, 2), c)[0], shadow=True) for c in (0.0, 3.0)]
    written = complete(lm, rows, made.directions_LD, SampleSettings(max_new_tokens=12, greedy=True))
    for row, found in zip(rows, written, strict=True):
        added_LD = row.coefficients_L[:, None] * made.directions_LD
        assert_as_alone(lm, row, lambda layer, _, added_LD=added_LD: added_LD[layer], found)


def test_a_model_without_decoder_blocks_is_refused():
    model = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=5, num_heads=2, vocab_size=20)
    )
    model.config.num_hidden_layers = 7
    with pytest.raises(SettingsError, match="decoder blocks"):
        find_blocks(model)


@pytest.mark.parametrize(
    ("n_layers", "band", "layers"),
    [
        (10, (0.4, 0.6), (4, 5)),
        (26, (0.4, 0.6), (10, 11, 12, 13, 14, 15)),
        (4, (0.0, 1.0), (0, 1, 2, 3)),
        (10, (0.45, 0.45), (4,)),
    ],
)
def test_a_band_holds_the_layers_whose_centre_it_holds(n_layers, band, layers):
    assert band_layers(n_layers, band) == layers


@pytest.mark.parametrize("band", [(0.6, 0.4), (-0.1, 0.5), (0.5, 1.2), (float("nan"), 0.5), (0.5, 0.5)])
def test_a_bad_band_is_refused(band):
    with pytest.raises(SettingsError):
        band_layers(10, band)


@pytest.mark.parametrize("n_layers", [1, 3, 10, 26])
def test_layers_to_band_and_back(n_layers):
    for first in range(n_layers):
        for last in range(first, n_layers):
            assert band_layers(n_layers, layers_band(n_layers, first, last)) == tuple(range(first, last + 1))
    with pytest.raises(SettingsError, match=f"0-{n_layers - 1}"):
        layers_band(n_layers, 0, n_layers)
