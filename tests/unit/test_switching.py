"""Another model in place of the one that steers: from saved folders, as a person would bring them."""

import gc
import threading
import weakref

import gradio as gr
import pytest
from transformers import MambaConfig, MambaForCausalLM

from components import model_picker, view
from steer_heal.config import GEMMA, SMOLLM2, SettingsError
from steer_heal.engine import Engine
from steer_heal.models import load
from tests import tiny
from tests.crowd import ids, request
from tests.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    archs = ("gemma3", "qwen3")
    return {arch: tiny.save(tiny.language_model(arch), tmp_path_factory.mktemp(arch)) for arch in archs}


@pytest.fixture
def engine(folders, tmp_path):
    made = Engine(folders["gemma3"], runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb")
    yield made
    made.close()


def steered(engine):
    return ids(list(engine.steer(request(alpha=2.0, n=6, greedy=True), session="a"))[-1])[1]


def test_there_and_back_again(folders, tmp_path):
    lm, said = load(folders["gemma3"]), []
    engine = Engine(lm=lm, runs_dir=tmp_path / "runs", db=tmp_path / "runs.duckdb")
    first, old = steered(engine), weakref.ref(lm.model)
    del lm
    info = engine.use(folders["qwen3"], progress=said.append)
    assert (info.architecture, engine.info) == ("Qwen3ForCausalLM", info)
    assert any("weights" in text for text in said)
    gc.collect()
    assert old() is None
    assert steered(engine) != first
    engine.use(folders["gemma3"])
    assert steered(engine) == first
    engine.close()


def test_each_model_is_asked_with_its_own_texts(engine):
    vignettes = engine.vignettes()
    engine.use("demo")
    assert not {v.text for v in engine.vignettes()} & {v.text for v in vignettes}


def test_one_that_cannot_be_had_or_cannot_answer_leaves_what_is_there(engine, tmp_path):
    """Mamba keeps no keys and values, of which the decode loop's batches are made."""
    words, mamba = tiny.tokenizer(), str(tmp_path / "mamba")
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "eos_token_id": 1, "pad_token_id": 0}
    MambaForCausalLM(MambaConfig(vocab_size=len(words), **shape)).save_pretrained(mamba)
    words.save_pretrained(mamba)
    first, before = steered(engine), engine.info
    for wrong, said in (
        ("no such model", "Unknown model"),
        ("own/not-here", "own/not-here"),
        (mamba, "more than keys and values"),
    ):
        with pytest.raises(SettingsError, match=said):
            engine.use(wrong)
        assert engine.info == before
        assert steered(engine) == first


@pytest.mark.parametrize(
    ("error", "said"), [(SettingsError("Why not."), "Why not."), (OSError(), view.BROKE)]
)
def test_loading_is_heard_of_while_it_lasts_and_where_it_fails_the_chooser_goes_back(error, said):
    heard = threading.Event()

    class Failing(FakeEngine):
        def use(self, model, *, progress=None):
            progress("fetching it")
            assert heard.wait(60)
            raise error

    with gr.Blocks() as page:
        engine = Failing()
        model_picker.wire(page, engine, *model_picker.build(engine))
    choose = list(page.fns.values())[-1].fn
    shown = choose("other")
    assert [head.split("Loading other: ")[1].split("<")[0] for head, *_ in (next(shown), next(shown))] == [
        "looking for it",
        "fetching it",
    ]
    heard.set()
    ((head, name, _),) = shown
    assert view.error(said) in head
    assert name == engine.info.name


def test_the_known_models_are_offered_and_a_name_may_be_typed():
    with gr.Blocks():
        head, chooser, listed = model_picker.build(FakeEngine())
    assert [value for _, value in chooser.choices] == [GEMMA, SMOLLM2, "demo"]
    assert "smollm2 (a real model) is not here: choose it." in head.value
    assert "here, 7 MB" in listed.value
    assert "not here: accept its licence" in listed.value
    assert (chooser.value, chooser.allow_custom_value) == ("demo", True)
