import json

import pytest
import torch
from torch import nn

from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal.adapters import WEIGHTS, AdapterStack, saved_rounds, target_modules
from tests import tiny
from tests.rounds import shake
from tests.tiny import logits

SETTINGS = TrainSettings(rank=2)


@pytest.fixture
def lm():
    return tiny.language_model("gemma3", n_layers=2)


@pytest.fixture
def trained(lm):
    stack = AdapterStack(lm)
    for round_ in (1, 2):
        stack.fresh(round_, SETTINGS, seed=round_)
        shake(stack, round_)
        stack.fold()
    return stack


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
