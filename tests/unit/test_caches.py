"""Nothing that was kept is used once anything that decides it has changed."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import chat_template_utils

from steer_heal import data
from steer_heal.config import CalibrateSettings, build
from steer_heal.dose import calibrate
from steer_heal.engine import Engine
from steer_heal.engine.vectors import Vectors
from steer_heal.models import load
from steer_heal.models.identity import tensor_hash
from steer_heal.vectors import vector
from steer_heal.vectors.bridges import installed
from tests import tiny
from tests.crowd import BAND, request
from tests.unit.test_dose import search
from tests.unit.test_load import edit

TRAIT = "care_over_authority"


def repair_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<start_of_turn>", "<start_of_turn> "))


def repair_tokenizer(folder):
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(values))


def repair_one_number(folder):
    lm = load(str(folder), device="cpu")
    with torch.no_grad():
        lm.blocks[0].mlp.down_proj.weight[3, 5] += 0.5
    tiny.save(lm, folder)


def repair_epsilon(folder):
    edit(folder / "config.json", rms_norm_eps=0.5)


REPAIRS = [repair_template, repair_epsilon, repair_tokenizer, repair_one_number]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    known = data.material(demo=False).contexts(TRAIT)[:4]
    monkeypatch.setattr(data.Material, "contexts", lambda *_: known)
    found = search(list, build(CalibrateSettings))
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: found)


@pytest.fixture
def folder(tmp_path):
    tiny.save(tiny.language_model("llama"), tmp_path / "model")
    return tmp_path / "model"


def steer(folder, cache):
    return Vectors(load(str(folder), device="cpu"), cache).steer(TRAIT, BAND)


@pytest.mark.parametrize("repair", REPAIRS)
def test_a_repaired_model_gets_its_own_vector_and_c_star(repair, folder, tmp_path):
    before = steer(folder, tmp_path / "cache")
    repair(folder)
    now, fresh = steer(folder, tmp_path / "cache"), steer(folder, tmp_path / "new cache")
    assert torch.equal(now.vector.directions_LD, fresh.vector.directions_LD)
    assert not torch.equal(now.vector.directions_LD, before.vector.directions_LD)
    assert len(list((tmp_path / "cache").glob("calibration-*"))) == 2


def test_a_template_that_writes_the_date_has_a_vector_for_each_day(folder, tmp_path, monkeypatch):
    file = folder / "chat_template.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}" + file.read_text())
    steer(folder, tmp_path / "cache")
    n_files = len(list((tmp_path / "cache").iterdir()))
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(2031, 5, 4)))
    steer(folder, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2 * n_files


def test_c_star_is_of_what_ends_an_answer(folder, tmp_path):
    steer(folder, tmp_path)
    n_files = len(list(tmp_path.glob("calibration-*")))
    edit(folder / "generation_config.json", eos_token_id=[1, 5, 40])
    steer(folder, tmp_path)
    assert len(list(tmp_path.glob("calibration-*"))) == n_files + 1


def test_the_name_decides_nothing(folder, tmp_path):
    steer(folder, tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-*")}
    moved = steer(folder.rename(tmp_path / "moved"), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-*")} == files
    assert moved.vector.meta["model"] == str(tmp_path / "moved")


def other_persona(monkeypatch):
    known = data.trait(TRAIT)
    monkeypatch.setattr(data, "trait", lambda _: replace(known, positive="Be quite another person."))


def other_contexts(monkeypatch):
    known = data.material(demo=False).contexts(TRAIT)
    monkeypatch.setattr(data.Material, "contexts", lambda *_: [*known, "Something new."])


def other_extraction(monkeypatch):
    monkeypatch.setattr(vector, "VERSION", vector.VERSION + 1)


def other_calibration(monkeypatch):
    monkeypatch.setattr(calibrate, "VERSION", calibrate.VERSION + 1)


@pytest.mark.parametrize(
    ("change", "made"),
    [(other_persona, 2), (other_contexts, 2), (other_extraction, 1), (other_calibration, 1)],
)
def test_other_material_and_another_version_of_ours_are_measured_anew(change, made, tmp_path, monkeypatch):
    lm = tiny.shared("llama")
    vectors = Vectors(lm, tmp_path)
    before = vectors.steer(TRAIT, BAND)
    n_files = len(list(tmp_path.iterdir()))
    change(monkeypatch)
    assert len({id(Vectors(lm, tmp_path).steer(TRAIT, BAND)), id(before)}) == 2
    assert len(list(tmp_path.iterdir())) == n_files + made
    assert (vectors.steer(TRAIT, BAND) is before) == (change is other_calibration)


def test_another_release_of_steering_lite_is_another_extraction(tmp_path, monkeypatch):
    vectors = Vectors(tiny.shared("llama"), tmp_path)
    own, theirs = vectors.key(TRAIT, "mean_diff"), vectors.key(TRAIT, "steering-lite:pca")
    monkeypatch.setattr(installed, "release", lambda _: "99")
    assert vectors.key(TRAIT, "mean_diff") == own
    assert vectors.key(TRAIT, "steering-lite:pca") != theirs


def test_a_damaged_vector_is_extracted_again(tmp_path):
    lm = tiny.shared("llama")
    good = Vectors(lm, tmp_path).vector(TRAIT)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(Vectors(lm, tmp_path).vector(TRAIT).directions_LD, good.directions_LD)


def test_weights_have_one_hash_in_every_format_that_holds_them(tmp_path):
    lm = tiny.language_model("gemma3")
    lm.model.to(torch.bfloat16)
    folder = tiny.save(lm, tmp_path)
    as_stored, wide = (load(folder, device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert as_stored.weights_hash == wide.weights_hash == lm.weights_hash
    assert as_stored.fingerprint != wide.fingerprint
    assert load(folder, device="cpu", dtype="float16").weights_hash != wide.weights_hash


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1 << 18,), (1 << 18) + 3, (3, 1 << 17)])
def test_every_number_and_its_place_is_in_the_hash(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    known = tensor_hash(values)
    assert tensor_hash(values.clone()) == known
    flat = values.reshape(-1)
    for place in {0, len(flat) // 2, len(flat) - 1}:
        other = flat.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(torch.inf))
        assert tensor_hash(other) != known
    if len(flat) > 1:
        assert tensor_hash(flat.flip(0)) != known
        assert tensor_hash(flat.roll(1)) != known


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.float64, torch.bool])
def test_other_formats_are_hashed_too(dtype):
    values = torch.arange(9).to(dtype)
    assert tensor_hash(values) != tensor_hash(values.flip(0))
    assert tensor_hash(values[1:]) == tensor_hash(values[1:].clone())


def test_a_changed_weight_or_saved_buffer_is_seen_at_once():
    lm = tiny.language_model("llama")
    lm.model.register_buffer("scale", torch.ones(3))
    seen = {lm.weights_hash}
    for change in (lm.model.model.norm.weight, lm.model.scale):
        with torch.no_grad():
            change[1] += 1.0
        lm.model.model.norm.weight.data = lm.model.model.norm.weight.data.clone()
        seen.add(lm.weights_hash)
    assert len(seen) == 3


def base_of(engine):
    return [token.p for token in list(engine.steer(request(n=6, greedy=True), session="a"))[-1].base]


def test_a_kept_base_answer_is_of_the_weights_as_they_are(tmp_path):
    lm = tiny.language_model("llama")
    places = {"runs_dir": tmp_path / "runs", "db": tmp_path / "runs.duckdb"}
    with closing(Engine(lm=lm, **places)) as engine:
        before = base_of(engine)
        assert base_of(engine) == before
        with torch.no_grad():
            lm.blocks[0].mlp.down_proj.weight.mul_(-1.0)
        changed = base_of(engine)
    assert changed != before
    with closing(Engine(lm=lm, **places)) as fresh:
        assert base_of(fresh) == pytest.approx(changed, rel=1e-4)


def test_a_repaired_folder_is_read_anew(folder, tmp_path):
    with closing(Engine(str(folder), runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb")) as engine:
        before = base_of(engine)
        repair_template(folder)
        engine.use(str(folder))
        assert base_of(engine) != before
