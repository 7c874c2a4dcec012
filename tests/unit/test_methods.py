import numpy as np
import pytest
import torch

from steer_heal.config import AUTO, MODEL_METHODS, OWN_METHODS, SettingsError, decided_method
from steer_heal.vectors.methods import METHODS, method, principal_component


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


def test_one_pair_has_no_component():
    positive, negative = pairs(n=1)
    with pytest.raises(SettingsError, match="two contexts"):
        principal_component(positive, negative)


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
