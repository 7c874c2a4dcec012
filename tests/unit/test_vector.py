from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from steer_heal.config import ExtractSettings, SettingsError
from steer_heal.models import system, user
from steer_heal.records import Trait
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.vector import SteeringVector
from tests import tiny
from tests.close import assert_near, model_rounding, rounding

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


@pytest.mark.parametrize("damage", ["nan", "shape"])
def test_a_damaged_vector_is_refused(tmp_path, damage):
    whole = random_vector()
    norms = whole.norms_L[:-1] if damage == "shape" else whole.norms_L * float("nan")
    path = vectors.save(SteeringVector(whole.directions_LD, norms, whole.residual_norms_L), tmp_path / "v")
    with pytest.raises(SettingsError, match="damaged"):
        vectors.load(path)


def test_the_file_can_be_read_by_others(tmp_path):
    path = vectors.save(random_vector(), tmp_path / "deep" / "v.safetensors")
    assert path.stat().st_mode & 0o044 == 0o044
