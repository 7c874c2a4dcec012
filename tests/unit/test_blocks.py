import pytest
from transformers import T5Config, T5ForConditionalGeneration

from steer_heal.config import SettingsError
from steer_heal.models import band_layers, find_blocks, layers_band


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
