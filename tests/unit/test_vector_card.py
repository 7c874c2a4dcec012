"""A vector that travels: its recipe in every format, its card, the hub, another model of the same width."""

from pathlib import Path
from typing import Any

import pytest
import torch

from steer_heal.cli import hub
from steer_heal.heal import vector_card
from steer_heal.heal.cards import NAME
from steer_heal.vectors import formats

FEW = ("--model", "tiny", "--band", "0.25-0.75")


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
    assert f"| c* | {float(c_star):.3g}" in card
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
