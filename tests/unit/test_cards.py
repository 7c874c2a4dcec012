import json

import pytest

from steer_heal import cards, data
from steer_heal.config import FOUNDATIONS, HealSettings, SettingsError

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


def test_the_bundled_model_is_no_hub_id(tmp_path):
    assert "base_model" not in made("demo").split("---")[1]
    assert "base_model" not in made(str(tmp_path)).split("---")[1]


def test_a_merged_model_is_described_as_one():
    text = made(merged=True)
    assert "library_name: transformers" in text
    assert "PeftModel" not in text


def test_what_was_not_measured_is_said():
    settings = HealSettings()
    text = cards.card(
        settings, data.trait(settings.trait), 1, {"base": MEASURED["base"]}, {"retention": None}
    )
    assert "retention: not measured" in text
    assert "| healed |" not in text


def test_a_card_lies_beside_the_weights(tmp_path):
    assert cards.write(tmp_path, "x").read_text() == "x"
    with pytest.raises(SettingsError, match="Cannot write"):
        cards.write(tmp_path / "none", "x")
