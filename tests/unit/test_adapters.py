import json

import pytest
import torch
from torch import nn

from steer_heal import data
from steer_heal.config import FOUNDATIONS, HealSettings, SettingsError, TrainSettings, heal_settings
from steer_heal.heal import cards
from steer_heal.heal.adapters import WEIGHTS, AdapterStack, saved_rounds, target_modules
from steer_heal.heal.merging import merge, stored_dtype
from steer_heal.models import load
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.rounds import SETTINGS, healed, shake
from tests.tiny import logits


@pytest.fixture
def lm():
    return tiny.language_model("gemma3", n_layers=2)


@pytest.fixture
def trained(lm):
    return healed(lm, 2)


def test_targets_are_the_linear_layers_of_attention_and_mlp(arch):
    names = target_modules(tiny.shared(arch))
    assert names == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_targets_are_full_paths_where_a_name_is_not_unique(lm):
    lm.model.tower = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
    names = target_modules(lm)
    assert "model.layers.0.self_attn.q_proj" in names
    assert not [name for name in names if "tower" in name]


def test_a_fresh_adapter_changes_nothing_and_alone_asks_for_gradients(lm, trained):
    before = logits(lm)
    trained.fresh(3, SETTINGS, seed=0)
    assert torch.equal(logits(lm), before)
    asking = [name for name, parameter in lm.model.named_parameters() if parameter.requires_grad]
    assert asking
    assert all("round-3" in name for name in asking)
    trained.fold()
    assert not trained.trainable()


def test_off_and_previous_are_exact_and_come_back(lm):
    base = logits(lm)
    stack = AdapterStack(lm)
    with stack.off():
        assert torch.equal(logits(lm), base)
    stack.fresh(1, SETTINGS, seed=1)
    shake(stack)
    stack.fold()
    first = logits(lm)
    stack.fresh(2, SETTINGS, seed=2)
    shake(stack)
    second = logits(lm)
    with stack.previous():
        assert torch.equal(logits(lm), first)
        with stack.off():
            assert torch.equal(logits(lm), base)
        assert torch.equal(logits(lm), first)
    with pytest.raises(RuntimeError, match="inside"), stack.off():
        raise RuntimeError("inside")
    assert torch.equal(logits(lm), second)
    assert not torch.equal(first, base)
    assert not torch.equal(second, first)
    assert stack.trainable()


def test_rounds_cannot_be_mixed_up(lm, trained):
    with pytest.raises(ValueError, match="round 2"):
        trained.fresh(2, SETTINGS, seed=0)
    trained.fresh(3, SETTINGS, seed=0)
    with pytest.raises(ValueError, match="round 4"):
        trained.fresh(4, SETTINGS, seed=0)
    trained.fold()
    with pytest.raises(ValueError, match="no adapter"):
        trained.fold()


def test_saved_rounds_load_into_the_same_model(lm, trained, tmp_path):
    wanted = logits(lm)
    for round_ in (1, 2):
        trained.save(round_, tmp_path)
    trained.unload()
    assert saved_rounds(tmp_path) == [1, 2]
    again = AdapterStack(lm)
    for round_ in saved_rounds(tmp_path):
        again.load(round_, tmp_path)
    assert torch.equal(logits(lm), wanted)
    assert again.history == (1, 2)
    assert not again.trainable()
    config = json.loads((tmp_path / "round-2" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (tmp_path / "round-2" / WEIGHTS).stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written(lm, trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="Cannot write"):
        trained.save(1, tmp_path / "file")


def base(folder, dtype=torch.float32):
    made = tiny.language_model("gemma3")
    made.model.to(dtype)
    tiny.save(made, folder)
    return lambda: load(str(folder), device="cpu", dtype="float32")


def train(lm, folder, n_rounds=2):
    """Rounds whose adapters really change something; the logits with all of them on."""
    stack = healed(lm, n_rounds, TrainSettings(rank=4), size=0.1, folder=folder)
    found = logits(lm)
    stack.unload()
    return found


def test_merged_rounds_answer_as_the_adapters_did(tmp_path):
    fresh = base(tmp_path / "base")
    adapted = train(fresh(), tmp_path / "adapters")
    assert not torch.allclose(adapted, logits(fresh()), atol=1e-2)
    target = merge(fresh(), tmp_path / "adapters", tmp_path / "merged")
    opened = load(str(target), device="cpu")
    assert_near(logits(opened), adapted, model_rounding(opened))
    assert not (target / "adapter_config.json").exists()
    assert opened.encode_chat([{"role": "user", "content": "hi"}])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_files_number_format_is_the_bases(tmp_path):
    fresh = base(tmp_path / "base", torch.bfloat16)
    adapted = train(fresh(), tmp_path / "adapters")
    opened = load(
        str(merge(fresh(), tmp_path / "adapters", tmp_path / "merged")), device="cpu", dtype="bfloat16"
    )
    assert stored_dtype(opened) == torch.bfloat16
    tolerance = model_rounding(opened)  # that of bfloat16, which the weights are rounded to
    opened.model.float()
    assert_near(logits(opened), adapted, tolerance)


def test_only_the_first_rounds(tmp_path):
    fresh = base(tmp_path / "base")
    train(fresh(), tmp_path / "adapters", n_rounds=1)
    one = logits(load(str(merge(fresh(), tmp_path / "adapters", tmp_path / "a")), device="cpu"))
    train(fresh(), tmp_path / "adapters")
    again = merge(fresh(), tmp_path / "adapters", tmp_path / "b", rounds=1)
    assert torch.equal(logits(load(str(again), device="cpu")), one)


def test_nothing_to_merge_and_no_room_are_refused(tmp_path):
    fresh = base(tmp_path / "base")
    (tmp_path / "adapters").mkdir()
    with pytest.raises(SettingsError, match="nothing to merge"):
        merge(fresh(), tmp_path / "adapters", tmp_path / "merged")
    train(fresh(), tmp_path / "adapters", n_rounds=1)
    with pytest.raises(SettingsError, match="not empty"):
        merge(fresh(), tmp_path / "adapters", tmp_path / "base")


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
    healed(lm, round_, folder=rounds)
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
