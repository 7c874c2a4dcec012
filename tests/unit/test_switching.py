"""A page before its model is there, and another model in place of the one that steers."""

import gc
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import gradio as gr
import pytest
from transformers import MambaConfig, MambaForCausalLM

from components import model_picker, view
from steer_heal import sources
from steer_heal.config import DEMO, GEMMA, SMOLLM2, SettingsError
from steer_heal.engine import Engine
from steer_heal.engine.starting import Starting
from steer_heal.models import load
from tests import tiny
from tests.browser.conftest import answers
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


ROOT = Path(__file__).parents[2]
PAGE = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "duckdb")))
from components.server import application
from steer_heal.sources import find
from steer_heal.engine.starting import Starting
application(Starting(find("demo"), lambda: sys.exit(1)), 1)
"""

GRADIO = """
import ast, inspect
from unittest.mock import patch
from components import quick_import
source_file = inspect.getfile
with patch.object(ast, "get_source_segment", wraps=ast.get_source_segment) as cut:
    quick_import.import_gradio()
import gradio
assert cut.call_count < 20 and inspect.getfile is source_file
assert gradio.Slider(0, 1).value == 0
"""


def test_the_page_is_built_before_torch_is_there() -> None:
    """Nor does it need the store's library, or any of the model's."""
    subprocess.run([sys.executable, "-c", PAGE], check=True, cwd=ROOT)


def test_gradio_is_imported_without_writing_interface_files() -> None:
    """Which it cuts out of the sources of its seventy-six components, twice; others are few."""
    subprocess.run([sys.executable, "-c", GRADIO], check=True, cwd=ROOT)


def test_the_files_tell_what_the_loaded_model_does() -> None:
    told, lm = sources.described(sources.find(DEMO)), load(DEMO)
    same = ("name", "architecture", "n_layers", "width", "n_parameters", "is_demo", "note")
    assert [getattr(told, one) for one in same] == [getattr(lm.info, one) for one in same]


def test_what_people_bring_is_told_by_loading_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = sources.find(str(tmp_path))
    assert sources.described(source) is None
    assert Starting(source, FakeEngine).info == FakeEngine().info


def test_once_begun_all_waits_for_the_engine() -> None:
    go = threading.Event()

    def make() -> FakeEngine:
        assert go.wait(60)
        return FakeEngine()

    engine = Starting(sources.find(DEMO), make)
    assert engine.info.device == "their way"
    engine.begin(lambda: pytest.fail("it was made"))
    asked = threading.Thread(target=lambda: infos.append(engine.info))
    infos = []
    asked.start()
    assert not infos
    go.set()
    asked.join(60)
    assert infos == [FakeEngine().info]
    assert engine.warm.wait(10)
    engine.close()


def test_what_keeps_it_from_being_made_ends_the_page_and_is_told_to_all() -> None:
    def make() -> FakeEngine:
        raise SettingsError("The model is broken: get another.")

    ended = threading.Event()
    engine = Starting(sources.find(DEMO), make)
    engine.begin(ended.set)
    assert ended.wait(60)
    for ask in (lambda: engine.info, engine.close):
        with pytest.raises(SettingsError, match="is broken"):
            ask()


ENDED = """
import sys, threading
import app, steer_heal.engine
steer_heal.engine.Engine = lambda *_, **__: threading.Event().wait()
sys.exit(app.main(["--model", "demo", "--port", "0"]))
"""


def test_ctrl_c_while_the_model_is_loading_ends_it_quietly() -> None:
    """Also where somebody already waits for the model."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        url = server.stdout.readline().split()[-1]
        asked = threading.Thread(target=lambda: answers(f"{url}/ui/mark"))
        asked.start()
        asked.join(1)
        server.send_signal(signal.SIGINT)
        try:
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
        assert (server.returncode, out, err) == (130, "", "")
