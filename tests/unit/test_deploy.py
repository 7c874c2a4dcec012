"""What people run it with: the notebook's cells, the container file's and the Space's words."""

import json
import re
import subprocess
from pathlib import Path

import yaml

from components import access
from steer_heal.runs import events
from steer_heal.runs.store import Store
from tests.runs import write_run

ROOT = Path(__file__).parents[2]


def test_the_notebook_reads_the_store_and_draws_the_map(tmp_path, monkeypatch):
    log = write_run(tmp_path / "r1" / "events.jsonl", name="x", seed=7)
    Store(tmp_path / "runs.duckdb", patience=1.0).ingest("r1", events.read(log))
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "notebooks" / "map.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    assert set(names["nodes"]["stage"]) == {"base", "steered", "healed"}
    markers = [trace for trace in names["figure"].data if trace.mode == "markers"]
    assert sum(len(trace.x) for trace in markers) == len(names["nodes"])
    assert len(names["profiles"])


def test_the_container_copies_what_is_there_and_starts_the_page():
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?:--\S+ )?(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"steer_heal", "components", "app.py", "requirements.txt"} & set(ignored)
    command = json.loads(re.search(r"^ENTRYPOINT (\[.+\])$", text, re.MULTILINE)[1])
    from_app = (ROOT / "app.py").read_text()
    assert all(f'"{flag}"' in from_app for flag in command if flag.startswith("--"))


def test_no_file_names_a_package_registry():
    """Where packages come from is for pip and its settings to say."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hosts = re.compile(rb"pypi[.](org|python)|pythonhosted[.]org|registry[.]npmjs|npmjs[.]org")
    files = [ROOT / name for name in listed.splitlines()]
    assert not [file for file in files if file.is_file() and hosts.search(file.read_bytes())]


def test_the_space_says_what_the_hub_reads():
    matter = yaml.safe_load((ROOT / "deploy" / "space" / "README.md").read_text().split("---")[1])
    exposed = re.search(r"^EXPOSE (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert (matter["sdk"], str(matter["app_port"])) == ("docker", exposed)
    assert len(matter["short_description"]) <= 60


def test_what_listens_for_others_is_told_its_login():
    for file in ("Dockerfile", "deploy/space/README.md"):
        assert access.LOGIN in (ROOT / file).read_text(), file
