"""Pushing to the hub: only when asked, private unless said, and the hub's refusals as one sentence."""

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from steer_heal.cli import hub
from steer_heal.config import SettingsError


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
