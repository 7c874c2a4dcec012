import json

import pytest
import torch

from steer_heal.config import SettingsError
from steer_heal.models import find, load
from steer_heal.models.find import DEMO
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lm = tiny.language_model("gemma3")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([[2, 4, 9, 30]])).logits


def test_a_saved_folder_loads_as_it_was(saved):
    lm, original = load(str(saved), device="cpu"), tiny.language_model("gemma3")
    assert torch.equal(logits(lm), logits(original))
    assert lm.encode_chat([{"role": "user", "content": "hi"}]) == original.encode_chat(
        [{"role": "user", "content": "hi"}]
    )
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.eos_ids == {1, 5}
    assert (lm.info.n_layers, lm.info.width, lm.info.is_demo) == (4, 32, False)


def test_dtype_is_the_checkpoints_own_unless_asked(saved):
    assert load(str(saved), device="cpu").dtype == torch.float32
    assert load(str(saved), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(SettingsError, match="dtype"):
        load(str(saved), device="cpu", dtype="int8")
    with pytest.raises(SettingsError, match="dtype"):
        load(str(saved), device="cpu", dtype="nonsense")


def test_equal_weights_have_one_fingerprint_and_others_another(saved):
    assert load(str(saved), device="cpu").fingerprint == load(str(saved), device="cpu").fingerprint
    assert tiny.language_model(seed=0).fingerprint != tiny.language_model(seed=1).fingerprint


@pytest.mark.parametrize("name", ["", "gemma", "no such folder/x y", "../..", "a/b/c"])
def test_an_unknown_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError):
        find(name)


def test_sources(saved):
    assert find("google/gemma-3-1b-it").kind == "hub"
    assert find(str(saved)).kind == "folder"
    if (DEMO / "config.json").exists():
        assert find("demo").kind == "demo"


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"config\.json"):
        find(str(tmp_path))


def test_a_hub_model_that_is_not_here_says_that_the_hub_cannot_be_reached():
    with pytest.raises(SettingsError, match=r"google/gemma-3-1b-it .*hub"):
        load("google/gemma-3-1b-it")


def change(folder, target, **values):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **values}))
    return str(target)


def test_an_unknown_architecture(saved, tmp_path):
    with pytest.raises(SettingsError, match="architecture"):
        load(change(saved, tmp_path, model_type="never_heard_of"))


def test_remote_code_is_not_run(saved, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    with pytest.raises(SettingsError, match="code from its own repository"):
        load(change(saved, tmp_path, model_type="never_heard_of", auto_map=auto_map))


def test_pickled_weights_are_not_read(saved, tmp_path):
    folder = change(saved, tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match="could not be loaded"):
        load(folder)


def test_damaged_weights(saved, tmp_path):
    folder = change(saved, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(SettingsError, match="could not be loaded"):
        load(folder)
