"""Vectors of other tools, merged models and the doctor, from the command line."""

import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steer_heal import models
from steer_heal.config import TrainSettings, heal_settings
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.cards import NAME
from steer_heal.models import load
from steer_heal.vectors import formats
from tests import tiny
from tests.runs import play_round, run_folder

pytestmark = pytest.mark.usefixtures("here")
FEW = ("--model", "tiny", "--band", "0.25-0.75")


def test_only_the_band(run: Any) -> None:
    code, _, _ = run("vector", *FEW, "--out", "v.safetensors", "--format", "steering-lite", "--only-band")
    assert code == 0
    assert sorted(load_file("v.safetensors")) == ["layer1.v", "layer2.v"]
    code, _, err = run(
        "vector", "--model", "tiny", "--band", "0-0.2", "--from", "v.safetensors", "--out", "w.npz"
    )
    assert code == 2
    assert err == "The vector has no direction at layer 0: choose a band within its layers (1,2).\n"


@pytest.mark.parametrize("method", ["mean_diff_raw", "pca", "replies"])
def test_other_methods(told: Any, method: str) -> None:
    assert told("vector", *FEW, "--method", method, "--out", "v.safetensors")["method"] == method
    lengths = formats.read("v.safetensors").directions_LD.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(4)) == (method != "mean_diff_raw")


def test_what_is_not_here_or_unknown_is_said(run: Any, here: Any) -> None:
    (here / "v.pt").write_bytes(b"")
    for arguments, words in [
        (("vector", *FEW, "--from", "v.pt", "--out", "w.npz"), "pickle"),
        (("vector", *FEW, "--method", "magic", "--out", "w.npz"), "unknown method 'magic'"),
        (("eval", *FEW, "--theirs"), "--theirs needs --vignettes"),
        (("export", "--run", "run-1", "--push", "nonsense"), "run"),
    ]:
        code, _, err = run(*arguments)
        assert code == 2
        assert words in err
        assert err.count("\n") == 1


def test_a_run_is_merged_with_its_card(told: Any, here: Any) -> None:
    lm = tiny.language_model("gemma3")
    folder = here / "runs" / "run-1"
    play_round(run_folder(folder, heal_settings(model=tiny.save(lm, here / "base"), rounds=1)), 1)
    stack = AdapterStack(lm)
    stack.fresh(1, TrainSettings(), seed=0)
    stack.fold()
    stack.save(1, folder / "adapters")
    document = told("export", "--run", "run-1", "--runs", "runs", "--merged", "merged")
    assert document["pushed"] is None
    assert "merged/model.safetensors" in document["files"]
    card = (here / "merged" / NAME).read_text()
    assert "library_name: transformers" in card
    assert "PeftModel" not in card
    assert "| **Care** | 0.250 | 0.350 |" in card
    assert load(str(here / "merged")).n_layers == 4


def test_doctor_tries_the_model_in_plain_words_and_json(run: Any, told: Any) -> None:
    document = told("doctor", "--model", "tiny")
    assert [check["name"] for check in document["self_test"]] == ["extract", "undo", "write", "choose"]
    assert all(check["ok"] for check in document["self_test"]), document["self_test"]
    assert {
        "device",
        "memory_free_gib",
        "model_cache",
        "gemma_in_cache",
        "models_here",
        "steering_lite",
        "tinymfv",
    } <= set(document)
    assert "<start_of_turn>" in document["chat_template"]
    assert document["problems"] == []
    code, out, _ = run("doctor", "--model", "tiny", "--no-test")
    assert code == 0
    assert "self-test" not in out
    assert re.search(r"^memory free \(GiB\) +\d", out, re.MULTILINE)
    assert not re.search(r"^\w*_\w* ", out, re.MULTILINE)
    assert "models get smollm2" in out
    assert models.default_model()[0] == "demo"


def test_readings_of_a_run_from_its_stored_scores(run: Any, told: Any, here: Any) -> None:
    log = run_folder(here / "runs" / "run-1", heal_settings(model="tiny", rounds=1))
    code, _, err = run("readings", "--run", "run-1")
    assert (code, err) == (2, "run-1 has no steered or healed stage to compare with base yet: wait.\n")
    play_round(log, 1)
    log.close()
    document = told("readings", "--run", "run-1")
    assert {row["stage"] for row in document["rows"]} == {"steered", "healed"}
    for row in document["rows"]:
        found = row["selectivity"]
        assert found["low"] <= found["value"] <= found["high"]
        assert (found["n"], found["n_invalid"], row["flips"]["value"]) == (2, 0, pytest.approx(0.0))
    code, out, _ = run("readings", "--run", "run-1")
    assert "SocialNorms down" in out
    assert "[" in out
