import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from steer_heal.config import SettingsError
from steer_heal.models import find, load
from steer_heal.models.find import DEMO
from steer_heal.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding


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


def test_weights_that_lack_a_tensor_are_not_made_up(saved, tmp_path):
    folder = change(saved, tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del held[name]
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"lacks 2 of its tensors, model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_a_folder_without_a_tokenizer_says_so(saved, tmp_path):
    """transformers makes up an empty one for some families, for others it fails."""
    for model_type in ("gemma3_text", "llama"):
        folder = change(saved, tmp_path, model_type=model_type)
        for file in tmp_path.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(SettingsError, match="save its tokenizer into the same folder"):
            load(folder)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_a_quantised_model_says_what_it_needs(saved, tmp_path):
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(SettingsError, match="quantised with bitsandbytes, which is not installed: run `pip"):
        load(change(saved, tmp_path, quantization_config=config))


def test_a_quantised_model_steers(tmp_path):
    """In four and in eight bits; skipped where bitsandbytes is not installed."""
    pytest.importorskip("bitsandbytes")
    words = tiny.tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "whole")
    for options in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        small = AutoModelForCausalLM.from_pretrained(
            tmp_path / "whole", quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
        )
        folder = tmp_path / next(iter(options))
        small.save_pretrained(folder)
        words.save_pretrained(folder)
        lm = load(str(folder), device="cpu")
        assert {torch.int8, torch.uint8} & {parameter.dtype for parameter in lm.model.parameters()}
        base = logits(lm)
        with steer(lm.blocks, torch.ones(4, 64), coefficients(4, (1, 2), 1.0)):
            assert not torch.equal(logits(lm), base)
        assert torch.equal(logits(lm), base)


def test_the_head_never_gets_a_slice_with_gaps(arch):
    """torch copies a whole bfloat16 weight for one: 300 times the time on a CPU."""
    lm = tiny.language_model(arch)
    strides = []
    lm.model.get_output_embeddings().register_forward_hook(
        lambda _head, inputs, _logits: strides.append(inputs[0].stride())
    )
    with torch.no_grad():
        whole = lm.model(input_ids=torch.tensor([[5, 6, 7]] * 2)).logits
        last = lm.model(input_ids=torch.tensor([[5, 6, 7]] * 2), logits_to_keep=1).logits
    assert strides == [(3 * lm.width, lm.width, 1), (lm.width, lm.width, 1)]
    assert_near(last, whole[:, -1:], model_rounding(lm))
