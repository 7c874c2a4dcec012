"""A page is built and served before its model is there; what is asked of it meanwhile waits."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from steer_heal import sources
from steer_heal.config import DEMO, SettingsError
from steer_heal.engine.starting import Starting
from steer_heal.models import load
from tests.browser.conftest import answers
from tests.fake_engine import FakeEngine

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
