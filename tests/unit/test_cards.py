import json

import pytest
import torch

from steer_heal import data
from steer_heal.config import FOUNDATIONS, HealSettings, SettingsError, TrainSettings, heal_settings
from steer_heal.heal import cards
from steer_heal.heal.adapters import AdapterStack
from tests import tiny
from tests.rounds import shake
from tests.tiny import logits

MEASURED = {
    stage: {"p": dict.fromkeys(FOUNDATIONS, 0.1) | {"Care": care}, "coherence": 0.99, "n_vignettes": 98}
    for stage, care in (("base", 0.25), ("steered", 0.41), ("healed", 0.437))
}
FACTS = {"kept": 90, "made": 128, "c_star": 16.25, "retention": 1.1}


def made(model="google/gemma-3-1b-it", round_=2, **values):
    settings = HealSettings(model=model)
    return cards.card(settings, data.trait(settings.trait), round_, MEASURED, FACTS, **values)


def test_a_card_states_model_trait_data_settings_and_profile():
    text = made()
    assert text.startswith('---\nbase_model: "google/gemma-3-1b-it"\n')
    assert "library_name: peft" in text
    trait = data.trait("care_over_authority")
    assert trait.positive in text
    assert trait.negative in text
    assert "| **Care** | 0.250 | 0.410 | 0.437 |" in text
    assert "90 kept of 128" in text
    assert "98 vignettes" in text
    assert "c* 16.250" in text
    assert "rounds 1 to 1" in text
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert HealSettings(**settings) == HealSettings(model="google/gemma-3-1b-it")


@pytest.mark.parametrize(
    ("model", "method", "said"),
    [
        ("smollm2", "auto", "paired replies: difference of means, over 24 scenes x 8 pairs of replies"),
        ("smollm2", "pca", "persona: first principal component of the paired differences, over 128 contexts"),
    ],
)
def test_a_card_says_in_plain_words_how_the_vector_is_made(model, method, said):
    settings = heal_settings(model=model, extract={"method": method})
    text = cards.card(settings, data.trait(settings.trait), 1, MEASURED, FACTS)
    assert f"- vector: {said}\n" in text


@pytest.mark.parametrize("round_", [1, 2])
def test_the_code_on_a_card_loads_every_round(tmp_path, monkeypatch, round_):
    lm, rounds = tiny.language_model(n_layers=2), tmp_path / "adapters"
    lm.model.save_pretrained(tmp_path / "base")
    stack = AdapterStack(lm)
    for number in range(1, round_ + 1):
        stack.fresh(number, TrainSettings(rank=2), seed=number)
        shake(stack, number)
        stack.fold()
        stack.save(number, rounds)
    wanted = logits(lm)
    code = made(str(tmp_path / "base"), round_).split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(rounds)
    space = {}
    exec(code.replace("this_folder", "round-1"), space)
    with torch.no_grad():
        assert torch.equal(space["model"](torch.tensor([[2, 4, 9, 30]])).logits, wanted)


def test_the_bundled_model_is_no_hub_id(tmp_path):
    assert "base_model" not in made("demo").split("---")[1]
    assert "base_model" not in made("smollm2").split("---")[1]
    assert "base_model" not in made(str(tmp_path)).split("---")[1]


def test_what_was_not_measured_is_said():
    settings = HealSettings(model="demo")
    text = cards.card(
        settings, data.trait(settings.trait), 1, {"base": MEASURED["base"]}, {"retention": None}
    )
    assert "retention: not measured" in text
    assert "| healed |" not in text


def test_a_card_lies_beside_the_weights(tmp_path):
    assert cards.write(tmp_path, "x").read_text() == "x"
    with pytest.raises(SettingsError, match="Cannot write"):
        cards.write(tmp_path / "none", "x")
