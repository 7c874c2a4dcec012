"""Vectors of other tools and their cards, merged models and the doctor, from the command line."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steer_heal import models
from steer_heal.cli import hub
from steer_heal.config import heal_settings
from steer_heal.heal import vector_card
from steer_heal.heal.cards import NAME
from steer_heal.models import load
from steer_heal.vectors import formats
from tests import tiny
from tests.rounds import healed
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


def test_a_run_is_merged_with_its_card(told: Any, here: Any) -> None:
    lm = tiny.language_model("gemma3")
    folder = here / "runs" / "run-1"
    play_round(run_folder(folder, heal_settings(model=tiny.save(lm, here / "base"), rounds=1)), 1)
    healed(lm, folder=folder / "adapters")
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


@pytest.mark.parametrize("form", formats.FORMATS)
def test_a_vector_goes_out_with_its_recipe_in_the_file_and_on_the_card_and_comes_back(run, here, form):
    name = f"v{formats.FORMATS[form]}"
    code, out, _ = run("vector", *FEW, "--out", f"out/{name}", "--format", form)
    assert code == 0
    c_star = out.partition("c* ")[2].split()[0]
    code, out, _ = run("vector", *FEW, "--from", f"out/{name}", "--out", "back.safetensors")
    assert (code, out.partition("c* ")[2].split()[0]) == (0, c_star)
    made, back = formats.read(f"out/{name}", n_layers=4), formats.read("back.safetensors")
    assert torch.equal(made.directions_LD, back.directions_LD)
    meta, card = made.meta, Path("out", NAME).read_text()
    if form != "npz":  # which has no place for it
        assert (meta["trait"], meta["measured_on"], meta["steered_layers"]) == (
            "care_over_authority",
            "tiny-gemma3",
            "1,2",
        )
        assert float(meta["c_star"]) == pytest.approx(float(c_star), rel=1e-3)
    assert "| trait | care_over_authority |" in card
    on_the_card = card.partition("| c* | ")[2].split()[0]
    assert float(on_the_card) == pytest.approx(float(c_star), rel=1e-3)  # six digits, and the command's four
    assert "| steered layers | 1,2 |" in card
    assert "- towards: " in card
    assert "was not measured" in card


def test_what_it_does_and_its_controls_are_written_down_where_they_are_measured(run, here):
    code, out, err = run("vector", *FEW, "--out", "out/v.safetensors", "--effect")
    assert code == 0, err
    said = formats.read("out/v.safetensors").meta["effect"]
    assert "of 8 random directions of the same KL" in said
    assert said in out
    assert "random directions" in Path("out", NAME).read_text()
    assert run("vector", *FEW, "--from", "out/v.safetensors", "--out", "same/v.gguf")[0] == 0
    assert formats.read("same/v.gguf").meta["effect"] == said
    other = ("--model", "tiny", "--band", "0.25-0.5")
    assert run("vector", *other, "--from", "out/v.safetensors", "--out", "other/v.gguf")[0] == 0
    assert "effect" not in formats.read("other/v.gguf").meta
    code, _, err = run("vector", *FEW, "--from", "out/v.safetensors", "--effect", "--out", "w.gguf")
    assert (code, err.count("\n")) == (2, 1)


def test_one_made_on_another_model_of_the_same_width_says_so(run, here):
    assert run("vector", *FEW, "--out", "a/v.safetensors")[0] == 0
    made = formats.read("a/v.safetensors")
    assert formats.origin(made, "some/where/tiny-gemma3") == ""
    made.meta["model"] = "owner/other-1b"
    formats.write(made, "b/v.gguf")
    code, out, err = run("vector", *FEW, "--from", "b/v.gguf", "--out", "c/v.safetensors")
    assert code == 0
    assert "made on owner/other-1b, not on tiny-gemma3" in out + err
    assert "| made on | owner/other-1b |" in Path("c", NAME).read_text()
    assert "| dose measured on | tiny-gemma3 |" in Path("c", NAME).read_text()


def test_a_readme_that_is_no_card_of_ours_stays(run, here):
    Path(NAME).write_text("# My project\n")
    code, out, err = run("vector", *FEW, "--out", "v.npz")
    assert code == 0
    assert Path(NAME).read_text() == "# My project\n"
    assert "no card of ours" in out + err


def test_pushing_sends_the_file_and_its_card_alone(run, here, monkeypatch):
    sent: list[Any] = []

    def push(folder: Path, name: str, *, public: bool = False) -> str:
        sent.append((name, public, sorted(path.name for path in folder.iterdir())))
        return f"address of {name}"

    monkeypatch.setattr(hub, "push", push)
    Path("secret.txt").write_text("mine")
    code, out, _ = run("vector", *FEW, "--out", "v.gguf", "--push", "me/warm")
    assert (code, sent) == (0, [("me/warm", False, [NAME, "v.gguf"])])
    assert "address of me/warm" in out
    code, _, err = run("vector", *FEW, "--out", "v.gguf", "--push", "warm")
    assert (code, len(sent)) == (2, 1)
    assert "no hub id" in err


def test_what_a_file_says_is_a_line_of_text_on_the_card(run, here):
    assert run("vector", *FEW, "--out", "a/v.safetensors")[0] == 0
    made = formats.read("a/v.safetensors")
    made.meta["trait"] = "<script>x</script>|\n# y"
    card = vector_card.card(made, "v.gguf", None)
    assert "<script>" not in card
    assert "\n# y" not in card
