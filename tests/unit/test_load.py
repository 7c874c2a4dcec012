import json
import os
from importlib.util import find_spec

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from steer_heal import data
from steer_heal.config import FOUNDATIONS, ExtractSettings, SampleSettings, SettingsError
from steer_heal.evaluate.choice import evaluate
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, batch, files, find, load, placement, rows_that_fit, user
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import assert_near, log_p, model_rounding, nats
from tests.tiny import logits
from tests.unit.test_vector import CONTEXTS, TRAIT


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.save(tiny.language_model("gemma3"), folder)
    return folder


def test_a_saved_folder_loads_as_it_was(saved):
    lm, original = load(str(saved), device="cpu"), tiny.language_model("gemma3")
    assert_near(logits(lm), logits(original), model_rounding(lm))
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
    for wrong in ("int8", "nonsense"):
        with pytest.raises(SettingsError, match="dtype"):
            load(str(saved), device="cpu", dtype=wrong)


@pytest.mark.parametrize(
    "name", ["", "gemma", "no such folder/x y", "../..", "a/b/c", "x" * 9000, "a\0b", "~nobody-here/x y"]
)
def test_an_unknown_name_and_an_empty_folder_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError):
        find(name)
    with pytest.raises(SettingsError, match=r"config\.json"):
        find(str(tmp_path))


def change(folder, target, **values):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    edit(target / "config.json", **values)
    return str(target)


def edit(file, **values):
    """Other values in a JSON file; None takes one out."""
    changed = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def words(folder, **values):
    edit(folder / "tokenizer.json", **values)


def settings(folder, **values):
    edit(folder / "tokenizer_config.json", **values)


def weights(folder, **values):
    """Other tensors in the file, some of them new."""
    held = load_file(folder / "model.safetensors")
    save_file({**held, **values}, folder / "model.safetensors", metadata={"format": "pt"})


def added(folder, content):
    """One more token than the model has embeddings for."""
    known = json.loads((folder / "tokenizer.json").read_text())
    number = max(known["model"]["vocab"].values()) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    words(folder, added_tokens=[*known["added_tokens"], {"id": number, "content": content, **flags}])
    return number


def rewrite(folder, **contents):
    """Files with other bytes, by their names with the last `_` for `.`."""
    for name, content in contents.items():
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(content)


POINTER = b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n"
UNK_LESS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<none>"}
WORDLESS = {"type": "BPE", "vocab": {}, "merges": []}
DAMAGED = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
ADAPTER = b'{"peft_type": "LORA", "base_model_name_or_path": "x"}'
NAN, INFINITE = ({"model.norm.weight": torch.full((32,), float(word))} for word in ("nan", "inf"))
NEWER = {"type": "Tomorrow", "vocab": {}}
NAMED = [{"name": name, "template": tiny.TEMPLATE} for name in ("rag", "tool_use")]
WRITES = tiny.TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}<tool>").encode()
FAULTS = {
    "shapes": (lambda to: edit(to / "config.json", hidden_size=48), r"embed_tokens.*\(309, 32\) instead of"),
    "room": (lambda to: edit(to / "config.json", vocab_size=10**12), "needs about .* GiB of memory on cpu"),
    "heads": (lambda to: edit(to / "config.json", num_attention_heads=3), "not a multiple of the number"),
    "newer model": (lambda to: words(to, model=NEWER), "newer than tokenizers .* run `pip install -U"),
    "newer version": (lambda to: words(to, version="9.0"), "newer than tokenizers"),
    "panic": (lambda to: words(to, normalizer=DAMAGED), "could not be loaded: .*precompiled_charsmap"),
    "no tokenizer": (lambda to: rewrite(to, tokenizer_json=b""), "its tokenizer.json holds no JSON object"),
    "settings cut": (lambda to: rewrite(to, tokenizer_config_json=b"{"), "tokenizer_config.json is no JSON"),
    "no words": (lambda to: words(to, model=WORDLESS), "turns 'Seven foxes"),
    "no unknown": (lambda to: words(to, model=UNK_LESS), "tokenizer of .* fails: WordLevel error"),
    "longest text": (lambda to: settings(to, model_max_length="many"), "tokenizer of .* fails"),
    "named": (lambda to: settings(to, chat_template=NAMED), "named rag, tool_use and none named default"),
    "lost token": (lambda to: rewrite(to, chat_template_jinja=WRITES), "no embedding for '<tool>'"),
    "new BOS": (lambda to: settings(to, bos_token="<new>"), "no embedding for '<new>'"),
    "pointer": (lambda to: rewrite(to, model_safetensors=POINTER), "its model.safetensors is a pointer"),
    "half of it": (lambda to: os.truncate(to / "model.safetensors", 9000), "its model.safetensors is dam"),
    "shard": (lambda to: indexed(to, "model-1-of-1.safetensors", move=False), "lacks model-1-of-1"),
    "mark": (lambda to: rewrite(to, special_tokens_map_json=b"\xef\xbb\xbf{}"), "map.json is no JSON in UTF"),
    "deep": (lambda to: rewrite(to, config_json=b'{"a":' + b"[" * 100_000), "config.json is no JSON"),
    "pipe": (lambda to: pipe(to / "generation_config.json"), "generation_config.json is no file but a pipe"),
    "pickled": (lambda to: pickled(to / "model.safetensors"), "could not be loaded"),
    "unheard of": (lambda to: edit(to / "config.json", model_type="never_heard_of"), "architecture"),
    "pickled shard": (lambda to: indexed(to, "model.bin"), "lacks model.bin, and pickled weights are"),
    "adapter": (lambda to: rewrite(to, adapter_config_json=ADAPTER), "also holds an adapter"),
    "not a number": (lambda to: weights(to, **NAN), "answers nothing that is a number"),
    "infinite": (lambda to: weights(to, **INFINITE), "answers nothing that is a number"),
    "list of tokens": (lambda to: rewrite(to, added_tokens_json=b"{"), "its added_tokens.json is no JSON"),
    "code": (lambda to: remote(to), "code from its own repository"),
    "other words": (lambda to: more_words(to), "is another model's: 2 of its tokens have no embedding, 'zj'"),
    "tensors": (lambda to: without(to), r"lacks 2 of its tensors, model\.layers\.1\.mlp\.up_proj"),
}  # fmt: skip


def indexed(folder, shard, *, move=True):
    """The weights in one shard, named by an index."""
    names = dict.fromkeys(load_file(folder / "model.safetensors"), shard)
    file = folder / "model.safetensors"
    file.rename(folder / shard) if move else file.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def pickled(file):
    file.unlink()
    torch.save({}, file.with_name("pytorch_model.bin"))


def remote(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", model_type="never_heard_of", auto_map=auto_map)


def more_words(folder):
    """Ordinary tokens that have no embedding: the texts that hold them would end in an error."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    words(folder, model={**model, "vocab": {**model["vocab"], "zq": 400, "zj": 401}})


def without(folder):
    held = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        del held[name]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_wrong_with_a_folder_is_one_sentence(saved, tmp_path, kind):
    folder, (fault, said) = change(saved, tmp_path), FAULTS[kind]
    if kind == "named":
        (tmp_path / "chat_template.jinja").unlink()
    if kind == "lost token":
        added(tmp_path, "<tool>")
    fault(tmp_path)
    with pytest.raises(SettingsError, match=said) as raised:
        load(folder, device="cpu")
    assert "\n" not in str(raised.value)


def test_a_padding_token_beyond_the_embedding_is_never_asked_for(saved, tmp_path):
    folder = change(saved, tmp_path, pad_token_id=100_000)
    settings(tmp_path, pad_token="<padding>")
    lm, whole = load(folder, device="cpu"), load(str(saved), device="cpu")
    rows = [Row(tuple(whole.encode_chat([user(text)]))) for text in ("short", "somewhat longer")]
    sample = SampleSettings(max_new_tokens=3, greedy=True)
    one, other = (complete(model, rows, torch.zeros(4, 32), sample) for model in (lm, whole))
    assert [row.text for row in one] == [row.text for row in other]


def test_an_added_token_that_the_embedding_lacks_is_read_as_text(saved, tmp_path):
    folder = change(saved, tmp_path)
    token, text = added(tmp_path, "<tool>"), "use a <tool> here"
    lm = load(folder, device="cpu")
    ids = lm.encode_chat([user(text)])
    assert token not in ids
    assert text in lm.decode(ids)


def test_a_tokenizer_that_was_trained_with_dropout_reads_a_text_one_way(saved, tmp_path):
    folder = change(saved, tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    words(tmp_path, model={**model, "dropout": 0.9})
    chat = [user(" and ".join(FOUNDATIONS))]
    assert load(folder, device="cpu").encode_chat(chat) == load(str(saved), device="cpu").encode_chat(chat)


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_chats_that_lose_their_bos_are_spoken_of(tmp_path, family):
    assert load(tiny.save(tiny.language_model(family), tmp_path), device="cpu").info.note == ""

    settings(tmp_path, bos_token=None)
    assert "do not begin with BOS (token 2 by its config.json)" in load(str(tmp_path), device="cpu").info.note

    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(SettingsError, match="tokenizer_config"):
        load(str(tmp_path), device="cpu")

    (tmp_path / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("{{ bos_token }}", ""))
    if family == "llama":  # for gemma3 transformers makes up another tokenizer, which is refused
        assert "tokenizer_config.json is missing" in load(str(tmp_path), device="cpu").info.note


def test_a_bos_left_out_or_written_by_design_is_not_spoken_of(saved, tmp_path):
    """As Qwen's template, which asks for none, and SmolLM2's, whose turns begin with it."""
    folder = change(saved, tmp_path)
    without = tiny.TEMPLATE.replace("{{ bos_token }}", "")
    for template in (without, without.replace("<start_of_turn>", "<bos>")):
        (tmp_path / "chat_template.jinja").write_text(template)
        settings(tmp_path, bos_token=None)
        assert load(folder, device="cpu").info.note == ""


def test_a_bos_that_only_chats_are_without_is_spoken_of(saved, tmp_path):
    folder = change(saved, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("{{ bos_token }}", ""))
    pieces = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    adding = {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": known}
    words(tmp_path, post_processor=adding)
    assert "template leaves out what its tokenizer begins" in load(folder, device="cpu").info.note


@pytest.mark.parametrize(
    "fault",
    [
        lambda to: edit(to / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2),
        lambda to: weights(to, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
    ],
)
def test_tensors_that_the_config_has_no_place_for_are_spoken_of(saved, tmp_path, fault):
    folder = change(saved, tmp_path)
    fault(tmp_path)
    assert "tensors of its blocks, model.layers." in load(folder, device="cpu").info.note


@pytest.mark.parametrize("kept", ["alone", "sharded", "named"])
def test_weights_are_counted_as_transformers_reads_them(saved, tmp_path, kept):
    folder = change(saved, tmp_path)
    alone = files.needed(tmp_path, torch.float32)
    if kept == "sharded":
        indexed(tmp_path, "model-00001-of-00001.safetensors")
    if kept == "named":
        edit(tmp_path / "config.json", transformers_weights="mine.safetensors")
        (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
        (tmp_path / "model.safetensors").write_bytes(b"another model")
    (tmp_path / "consolidated.safetensors").write_bytes(b"the same again, in another order")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "model.safetensors").write_bytes(b"and again")
    assert files.needed(tmp_path, torch.float32) == alone
    lm = load(folder, device="cpu")
    assert_near(logits(lm), logits(load(str(saved), device="cpu")), model_rounding(lm))


def test_one_whose_padding_is_read_is_refused(tmp_path):
    """RWKV has no attention, so no mask keeps it from what fills up a batch."""
    words = tiny.tokenizer()
    shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32}
    RwkvForCausalLM(RwkvConfig(**shape)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"\(RwkvForCausalLM\) also reads what fills up a batch"):
        load(str(tmp_path), device="cpu")


def test_more_tokens_than_a_model_has_positions_for_are_refused(tmp_path):
    """GPT-2 has a table of them, beyond which there is only an error."""
    words = tiny.tokenizer()
    shape = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 80}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **shape)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    lm = load(str(tmp_path), device="cpu")
    with pytest.raises(SettingsError, match="reads 80 tokens at most, and this chat has 1"):
        lm.encode_chat([user("a" * 90)])
    row = Row(tuple(lm.encode_chat([user("a" * 30)])))
    sample = SampleSettings(max_new_tokens=60, greedy=True)
    with pytest.raises(SettingsError, match=r"reads 80 tokens at most, .* new tokens or fewer, not 60"):
        complete(lm, [row], torch.zeros(4, 32), sample)
    few = SampleSettings(max_new_tokens=80 - len(row.prompt_ids), greedy=True)
    assert complete(lm, [row], torch.zeros(4, 32), few)[0].tokens


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


PLACES = {"model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk"}
BLOCKS = {f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(4)}


@pytest.fixture(scope="module", params=tiny.ARCHS)
def pair(request, tmp_path_factory):
    """The same weights whole, and spread."""
    whole, other = (tiny.language_model(request.param) for _ in range(2))
    spread = dispatch_model(
        other.model,
        device_map=PLACES | BLOCKS,
        main_device="cpu",
        offload_dir=tmp_path_factory.mktemp("offload"),
        force_hooks=True,
    )
    return whole, LanguageModel(whole.name, spread, other.tokenizer)


def test_it_is_known_where_input_goes(pair):
    whole, spread = pair
    assert placement.spread(spread.model)
    assert not placement.spread(whole.model)
    assert spread.device == torch.device("cpu")
    assert (whole.info.device, spread.info.device) == ("cpu", "several")
    assert spread.fingerprint == whole.fingerprint


def test_it_extracts_and_steers_as_the_whole_one(pair):
    whole = pair[0]
    made, other = (vectors.extract(lm, TRAIT, CONTEXTS, ExtractSettings(batch_size=2)) for lm in pair)
    raw, other_raw = (one.directions_LD * one.norms_L[:, None] for one in (made, other))
    assert_near(other_raw, raw, model_rounding(whole), made.residual_norms_L)
    prompt = tuple(whole.encode_chat([user("hi there")]))
    rows = [Row(prompt), Row(prompt, coefficients(4, (1, 2), 3.0)[0], shadow=True)]
    sample = SampleSettings(max_new_tokens=8, greedy=True)
    expected, found = (complete(lm, rows, made.directions_LD, sample) for lm in pair)
    for answer, other_answer in zip(expected, found, strict=True):
        assert [token.id for token in other_answer.tokens] == [token.id for token in answer.tokens]
    kls = [[token.kl for token in answers[1].tokens] for answers in (expected, found)]
    assert_near(kls[1], kls[0], model_rounding(whole), nats(whole, prompt))
    assert max(kls[0]) > 0.01


def test_it_is_evaluated_as_the_whole_one(pair):
    made = vectors.extract(pair[0], TRAIT, CONTEXTS, ExtractSettings(batch_size=2))
    doses_KL = torch.cat([coefficients(4, (1,), c) for c in (0.0, 2.0)])
    expected, found = (
        evaluate(
            lm,
            lm.material.vignettes(limit=2),
            data.frame("choice"),
            vector=made,
            coefficients_RL=doses_KL,
        )
        for lm in pair
    )
    for one, other in zip(expected, found, strict=True):
        assert_near(other.p, one.p, model_rounding(pair[0]), log_p(one))


def test_one_card_where_it_fits_and_all_where_it_does_not(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (60, 60))
    assert placement.best_device(tmp_path, "auto") == "auto"
    assert files.free("auto") == 120
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100, 100))
    assert placement.best_device(tmp_path, "auto") == "cuda"


def test_bfloat16_is_widened_only_on_a_processor_that_imitates_it(monkeypatch, tmp_path):
    lm = tiny.language_model()
    lm.model.bfloat16()
    tiny.save(lm, tmp_path)
    able = {"avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert load(str(tmp_path), device="cpu").dtype == torch.float32
    assert load(str(tmp_path), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    for instructions in placement.BFLOAT16:
        able[instructions] = True
        assert load(str(tmp_path), device="cpu").dtype == torch.bfloat16
        able[instructions] = False
    weights = files.needed(tmp_path, torch.float32)
    monkeypatch.setattr(placement, "room_on", lambda _device: 1.9 * weights)
    assert load(str(tmp_path), device="cpu").dtype == torch.bfloat16


def test_a_download_tells_how_far_it_is(monkeypatch, tmp_path):
    """The hub client's own bars: those of bytes speak, those of files do not."""

    def fetch(_name, *, allow_patterns, tqdm_class):
        assert not any("bin" in pattern for pattern in allow_patterns)
        with tqdm_class(total=3, desc="Fetching 3 files", disable=True) as bar:
            bar.update(1)
        with tqdm_class(total=0, unit="B", disable=True) as bar:
            bar.total += 2_000_000_000
            bar.update(500_000_000)
        return str(tmp_path)

    said = []
    monkeypatch.setattr(files, "snapshot_download", fetch)
    assert files.download("own/model", said.append) == tmp_path
    assert said == ["downloading, 0.50 of 2.00 GB"]


def test_weights_laid_out_for_few_rows_are_the_same_numbers(tmp_path):
    lm = tiny.language_model("llama")
    ids_BT = torch.arange(12)[None] + 20
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with torch.no_grad():
        logits = lm.model(input_ids=ids_BT).logits
        placement.lay_out(lm.model)
        again = lm.model(input_ids=ids_BT).logits
    weight = lm.model.model.layers[0].mlp.up_proj.weight
    assert not weight.is_contiguous()
    assert weight.t().is_contiguous()
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())
    torch.testing.assert_close(again, logits)
    lm.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in saved.items())


def test_rows_follow_the_free_memory(lm, monkeypatch):
    def fit(free: int, n_tokens: int = 100) -> int:
        monkeypatch.setattr(batch, "free", lambda _: free)
        return rows_that_fit(lm, n_tokens, 64)

    assert fit(0) == 1
    assert fit(2**40) == 64
    some = fit(10_000_000)
    assert 1 < some < 64
    assert fit(20_000_000) in {2 * some, 2 * some + 1}
    assert fit(10_000_000, 400) < some
