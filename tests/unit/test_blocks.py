import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from steer_heal.config import SettingsError
from steer_heal.models import band_layers, find_blocks, layers_band

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 20,
}


def test_the_blocks_of_each_tiny_model_are_its_layers(lm):
    assert lm.blocks == list(lm.model.model.layers)


def test_gpt2_and_mistral():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=20))
    assert find_blocks(gpt2) == list(gpt2.transformer.h)
    mistral = MistralForCausalLM(MistralConfig(**SMALL))
    assert find_blocks(mistral) == list(mistral.model.layers)


def test_a_multimodal_wrapper_gives_the_text_decoder_even_when_the_towers_are_as_deep():
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=SMALL["num_hidden_layers"],
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = {**SMALL, "head_dim": 8, "layer_types": ["full_attention"] * 3}
    config = Gemma3Config(text_config=text, vision_config=vision.to_dict(), mm_tokens_per_image=4)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    assert find_blocks(model) == list(model.model.language_model.layers)


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


def test_layers_outside_the_model_are_refused():
    with pytest.raises(SettingsError, match="0-3"):
        layers_band(4, 2, 4)
