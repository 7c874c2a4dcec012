"""A model in several places, placed by accelerate: half of its blocks' weights lie on disk until they run.

Cards cannot be had here. What can be shown without them is that steering, the cache and what caches are keyed
by go by where accelerate runs a block, not by where its weights happen to lie (meta, which computes nothing).
"""

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file

from steer_heal import data
from steer_heal.config import ExtractSettings, SampleSettings
from steer_heal.evaluate.choice import evaluate
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, batch, files, load, placement, rows_that_fit, user
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import assert_near, log_p, model_rounding, nats
from tests.unit.test_vector import CONTEXTS, TRAIT

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
