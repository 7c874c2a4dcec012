"""Adapters of any of peft's kinds, as people bring them: true on, the base to the bit off, or refused."""

import json
import shutil

import pytest
import torch
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn

from steer_heal.config import SampleSettings, SettingsError
from steer_heal.generate import Row, complete
from steer_heal.heal.adapters import CONFIG, WEIGHTS, AdapterStack
from steer_heal.models.kept import Kept
from tests import tiny

PROMPT = (2, 4, 9, 30, 31, 32, 40)
Q = {"target_modules": ["q_proj", "v_proj"]}
TOKENS = [4, 9, 30]


def lora(**options):
    return LoraConfig(r=2, task_type="CAUSAL_LM", **Q | options)


FIT = {
    "plain": lora(),
    "dora": lora(use_dora=True),
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=10, **Q),
    "on the embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "saved last norm": lora(modules_to_save=["norm"]),
    "saved norms of blocks": lora(modules_to_save=["input_layernorm"]),
    "saved embedding": lora(modules_to_save=["embed_tokens"]),
    "saved head": lora(modules_to_save=["lm_head"]),
    "tokens beside": lora(trainable_token_indices=TOKENS),
    "tokens": TrainableTokensConfig(token_indices=TOKENS, target_modules=["embed_tokens"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": OFTConfig(r=0, oft_block_size=8, **Q),
    "vera": VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    "layer norms": LNTuningConfig(target_modules=["input_layernorm", "norm"], task_type="CAUSAL_LM"),
}
REFUSED = {
    "pissa": (lora(init_lora_weights="pissa"), "pissa.* had changed"),
    "all biases": (lora(bias="all"), "not the base any more"),
    "its biases": (lora(bias="lora_only"), "not the base any more"),
    "more layers": (lora(layer_replication=[(0, 2), (1, 4)]), "not the base any more"),
    "adaption prompt": (AdaptionPromptConfig(adapter_len=3, adapter_layers=2, task_type="CAUSAL_LM"), "base"),
    "prompt": (PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "acts on the prompt"),
    "prefix": (PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "acts on the prompt"),
    "after a word": (lora(alora_invocation_tokens=[4, 9]), "acts on the prompt"),
}


def model():
    """A tiny Llama whose linear layers have biases, as Qwen's and Phi's do."""
    made = tiny.language_model("llama")
    for block in made.blocks:
        for linear in (part for part in block.modules() if isinstance(part, nn.Linear)):
            linear.bias = nn.Parameter(torch.full((linear.out_features,), 0.01), requires_grad=False)
    return made


def bring(config, folder, lm=None):
    """Someone's trained adapter, saved as peft saves it; its logits there."""
    made = get_peft_model((lm or model()).model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    made.eval().save_pretrained(folder)
    return logits(made)


def logits(network):
    with torch.no_grad():
        return network(input_ids=torch.tensor([PROMPT]), use_cache=False).logits


def standing(lm):
    """All that must be there again: modules, names and values, who asks for a gradient, what is answered."""
    return (
        dict(lm.model.named_modules()),
        {name: (one.data_ptr(), one.clone()) for name, one in lm.model.state_dict().items()},
        [one.requires_grad for one in lm.model.parameters()],
        logits(lm.model),
        said(lm),
    )


def assert_as_before(lm, before):
    modules, values, asking, answered, text = standing(lm)
    assert modules == before[0]
    assert values.keys() == before[1].keys()
    for name, (place, value) in values.items():
        assert place == before[1][name][0]
        assert torch.equal(value, before[1][name][1])
    assert asking == before[2]
    assert torch.equal(answered, before[3])
    assert text == before[4]


def said(lm):
    """Probabilities of the tokens that the decode loop writes."""
    sample = SampleSettings(max_new_tokens=4, greedy=True)
    written = complete(lm, [Row(PROMPT)], torch.zeros(lm.n_layers, lm.width), sample)[0]
    return [token.p for token in written.tokens]


@pytest.mark.parametrize("kind", FIT)
def test_it_is_true_on_and_the_base_to_the_bit_off_and_unloaded(kind, tmp_path):
    trained = bring(FIT[kind], tmp_path)
    lm = model()
    before = standing(lm)
    stack = AdapterStack(lm)
    stack.load_path(tmp_path)
    assert torch.equal(logits(lm.model), trained)
    assert not torch.equal(trained, before[3])
    assert said(lm)[0] == pytest.approx(float(trained[0, -1].softmax(-1).max()), rel=1e-4)
    with stack.off():
        assert torch.equal(logits(lm.model), before[3])
    assert torch.equal(logits(lm.model), trained)
    stack.unload()
    assert_as_before(lm, before)


@pytest.mark.parametrize("kind", REFUSED)
def test_one_whose_off_is_not_the_base_is_refused_and_leaves_nothing(kind, tmp_path):
    config, why = REFUSED[kind]
    bring(config, tmp_path)
    lm = model()
    before = standing(lm)
    with pytest.raises(SettingsError, match=why) as refused:
        AdapterStack(lm).load_path(tmp_path)
    assert "\n" not in str(refused.value)
    assert_as_before(lm, before)


def test_a_refused_one_leaves_those_before_it_on(tmp_path):
    for name, config in (("good", lora()), ("bad", lora(bias="all"))):
        bring(config, tmp_path / name)
    lm = model()
    before, stack = standing(lm), AdapterStack(lm)
    stack.load_path(tmp_path / "good")
    healed = standing(lm)
    with pytest.raises(SettingsError, match="not the base any more"):
        stack.load_path(tmp_path / "bad", 2)
    assert_as_before(lm, healed)
    assert stack.history == (1,)
    stack.unload()
    assert_as_before(lm, before)


@pytest.mark.parametrize("first", [True, False])
def test_one_that_trains_single_tokens_goes_on_beside_its_like_only(first, tmp_path):
    lm = model()
    for name, tokens in (("words", TOKENS), ("none", None), ("others", [31, 32])):
        bring(lora(trainable_token_indices=tokens), tmp_path / name)
    stack = AdapterStack(lm)
    stack.load_path(tmp_path / ("words" if first else "none"))
    healed = standing(lm)
    with pytest.raises(SettingsError, match=r"only one of them trains single tokens .*: put it on alone"):
        stack.load_path(tmp_path / ("none" if first else "words"), 2)
    assert_as_before(lm, healed)
    if first:
        stack.load_path(tmp_path / "others", 2)
        assert stack.history == (1, 2)


def changed_config(folder, **values):
    held = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(held | values))


def test_damaged_files_are_one_sentence_each(tmp_path):
    good, bad, lm = tmp_path / "good", tmp_path / "bad", model()
    bring(lora(), good)
    before = standing(lm)
    tensors = load_file(good / WEIGHTS)
    first = next(iter(tensors))

    def refused(why, spoil):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        spoil()
        with pytest.raises(SettingsError, match=why) as error:
            AdapterStack(lm).load_path(bad)
        assert "\n" not in str(error.value)
        assert_as_before(lm, before)

    refused("no adapter.* must hold", (bad / WEIGHTS).unlink)
    refused("pickle", lambda: (bad / WEIGHTS).rename(bad / "adapter_model.bin"))
    refused("cannot be read", lambda: (bad / WEIGHTS).write_bytes(b"\x80\x04"))
    refused("cannot be read", lambda: (bad / CONFIG).write_text("[" * 100_000))
    refused("cannot be read", lambda: (bad / CONFIG).write_text('"LORA"'))
    refused("cannot be read: .*NEWER", lambda: changed_config(bad, peft_type="NEWER"))
    refused("not finite", lambda: save_file({**tensors, first: tensors[first] * torch.inf}, bad / WEIGHTS))
    refused("not finite", lambda: changed_config(bad, lora_alpha=float("nan")))
    refused("size mismatch", lambda: changed_config(bad, r=3))
    refused("another model", lambda: changed_config(bad, target_modules=["q_proj"]))
    refused("not found in the base model", lambda: changed_config(bad, target_modules=["c_attn"]))


def test_one_in_eight_bit_floats_is_put_on(tmp_path):
    bring(lora(), tmp_path)
    small = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(small, tmp_path / WEIGHTS)
    lm = model()
    before, stack = standing(lm), AdapterStack(lm)
    stack.load_path(tmp_path)
    assert not torch.equal(logits(lm.model), before[3])
    stack.unload()
    assert_as_before(lm, before)


def test_one_that_says_it_is_another_models_is_told(tmp_path):
    bring(lora(), tmp_path)
    lm = model()
    lm.model.config._name_or_path = lm.model.name_or_path = "/models/small"
    for told, strange in (
        ("hub/other", ["other"]),
        ("/elsewhere/small", []),
        (f"x/{lm.name}", []),
        (None, []),
    ):
        changed_config(tmp_path, base_model_name_or_path=told)
        stack = AdapterStack(lm)
        stack.load_path(tmp_path)
        assert stack.strange() == strange
        stack.unload()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["saved norms of blocks", "pissa", "prefix"])
def test_eval_prints_the_true_base_or_says_why_not(kind, run, tmp_path):
    folder = str(tmp_path / "adapter")
    bring(
        (FIT | {kind: config for kind, (config, _) in REFUSED.items()})[kind], folder, tiny.language_model()
    )
    asked = ("eval", "--model", "tiny", "--limit", "3", "--json")
    alone = json.loads(run(*asked)[1])["rows"]
    code, out, error = run(*asked, "--adapter", folder)
    if kind in REFUSED:
        assert (code, out) == (2, "")
        assert error.count("\n") == 1
        assert folder in error
    else:
        base, healed = json.loads(out)["rows"]
        assert [base] == alone
        assert healed != {**base, "stage": "healed"}
    assert json.loads(run(*asked)[1])["rows"] == alone


def test_what_is_kept_comes_back_whatever_was_done():
    lm = model()
    before, kept = standing(lm), Kept(lm.model, copies=True)
    block = lm.blocks[0]
    hashes = kept.hashes()
    with torch.no_grad():
        lm.model.model.norm.weight.add_(1.0)
        block.mlp.up_proj.weight.data = torch.zeros(3, 3)
    assert kept.hashes() != hashes
    block.self_attn.q_proj = nn.Linear(2, 2)
    block.register_forward_hook(lambda *_: None)
    block.forward = None
    block.extra = nn.Linear(2, 2)
    lm.model.model.norm.weight.requires_grad_(True)
    kept.restore()
    assert kept.hashes() == hashes
    assert_as_before(lm, before)
    assert not block._forward_hooks
