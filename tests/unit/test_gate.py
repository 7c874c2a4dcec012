"""What reaches the page over HTTP, and who is let in: which addresses need a login, where it is read from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import app
from components import access, gate, server
from components.server import application
from steer_heal.config import SettingsError
from tests.fake_engine import FakeEngine

LOGIN = ("me", "correct horse")
API = "/gradio_api"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(application(FakeEngine(delay=0.0), 7860), base_url="http://localhost:7860") as client:
        yield client


@pytest.fixture(scope="module")
def guarded() -> Iterator[TestClient]:
    app = application(FakeEngine(delay=0.0), 7860, LOGIN)
    with TestClient(app, base_url="http://somewhere.example") as client:
        yield client


@pytest.mark.parametrize(
    "path",
    ["upload", "upload_progress?upload_id=a", "queue/status", "proxy=http://localhost/", "vibe-code",
     "dev/reload", "component_server", "process_recording", "runs", "run-history/buckets", "deep_link",
     "profiling/summary", "custom_component/a/b/c/d", "stream/a/b/c/playlist.m3u8", "call/v2/steer"],
)  # fmt: skip
def test_what_the_page_does_not_need_is_closed(client: TestClient, path: str) -> None:
    for reply in (client.get(f"{API}/{path}"), client.post(f"{API}/{path}", json={"data": []})):
        assert reply.status_code in (404, 405), (path, reply.status_code)
    for path in ("/monitoring", "/monitoring/summary", "/docs", "/openapi.json", "/redoc", "/pwa_icon"):
        assert client.get(path).status_code == 404


def test_only_the_page_s_scripts_are_served(client: TestClient) -> None:
    assert "SteerHeal" in client.get("/ui/page.js").text
    assert client.get("/ui/plotly.min.js").headers["content-encoding"] == "gzip"
    for path in ("page.css", "../app.py", "%2e%2e/app.py"):
        assert client.get(f"/ui/{path}").status_code in (403, 404), path


def test_no_file_of_the_machine_is_served(client: TestClient) -> None:
    for path in ("/etc/passwd", "app.py", "steer_heal/config.py", "../app.py", "http://example.org/x"):
        for way in ("file=", "static/../", "assets/../../"):
            prefix = API if way == "file=" else ""
            assert client.get(f"{prefix}/{way}{path}").status_code in (403, 404), (way, path)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1:7860", ""])
def test_without_a_login_it_answers_under_this_machines_names_only(client: TestClient, host: str) -> None:
    assert client.get("/config", headers={"host": host}).status_code == 403


def test_another_sites_page_cannot_act(client: TestClient) -> None:
    body = {"data": [], "session_hash": "a"}
    headers = {"sec-fetch-site": "cross-site"}
    assert client.post(f"{API}/call/runs", json=body, headers=headers).status_code == 403
    assert client.post(f"{API}/call/runs", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("queue/join", b"{", 422),
        ("queue/join", b"[" * 100_000, 422),
        ("queue/join", b"[]", 422),
        ("queue/join", b'{"data": [], "fn_index": 10000, "session_hash": "a"}', 404),
        ("queue/join", b'{"data": [], "fn_index": true, "session_hash": "a"}', 404),
        ("queue/join", b'{"data": [], "fn_index": "0", "session_hash": "a"}', 404),
        ("queue/join", b'{"data": [], "fn_index": 0, "session_hash": {}}', 422),
        ("run/predict", b'{"data": [1, 2, 3], "fn_index": 0}', 404),
        ("api/steer", b'{"data": ["hello"]}', 404),
        ("call/nothing", b'{"data": []}', 404),
        ("call/steer", b'{"data": ["hello"]}', 422),
        ("call/steer", b'{"data": [], "fn_index": 0}', 404),
        ("call/runs", b'{"data": [1]}', 422),
    ],
)  # fmt: skip
def test_malformed_calls_are_told_so(client: TestClient, path: str, body: bytes, status: int) -> None:
    reply = client.post(f"{API}/{path}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}


def test_too_large_is_refused_whatever_it_declares(client: TestClient) -> None:
    body = b'{"data": ["' + b"x" * gate.MAX_BODY_BYTES + b'"]}'
    assert client.post(f"{API}/call/steer", content=body).status_code == 413

    def pieces() -> Iterator[bytes]:
        yield body[:500_000]
        yield body[500_000:]

    assert client.post(f"{API}/call/steer", content=pieces()).status_code == 413


def test_the_mark_is_one_short_value_that_stands_still(client: TestClient) -> None:
    first = client.get("/ui/mark")
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-store"
    assert client.get("/ui/mark").text == first.text
    assert len(first.content) < 200


def test_with_a_login_nothing_but_its_page_is_open(guarded: TestClient) -> None:
    assert guarded.get("/").status_code == 200
    assert "Example" not in guarded.get("/").text
    closed = ["/config", "/ui/mark", "/ui/page.js", f"{API}/info", f"{API}/openapi.json", f"{API}/queue/data",
              f"{API}/heartbeat/a", f"{API}/startup-events", f"{API}/mcp/", f"{API}/token"]  # fmt: skip
    assert {path: guarded.get(path).status_code for path in closed} == dict.fromkeys(closed, 401)
    for path in ("call/steer", "queue/join", "run/predict", "cancel", "reset"):
        assert guarded.post(f"{API}/{path}", json={"data": []}).status_code == 401, path
    headers = {"cookie": 'access-token-unsecure-x=y; a="'}
    assert guarded.get("/config", headers=headers).status_code == 401


def test_the_right_password_opens_it_and_logging_out_closes_it(guarded: TestClient) -> None:
    assert guarded.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
    assert guarded.get("/config").status_code == 401
    assert guarded.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]}).status_code == 200
    assert guarded.get("/config").status_code == 200
    assert guarded.get("/ui/mark").status_code == 200
    guarded.get("/logout")
    assert guarded.get("/config").status_code == 401


def test_guessing_is_slowed_down() -> None:
    app = application(FakeEngine(), 7860, LOGIN)
    with TestClient(app, base_url="http://somewhere.example") as client:
        wrong = [client.post("/login", data={"username": "me", "password": str(n)}) for n in range(12)]
        assert [reply.status_code for reply in wrong] == [400] * gate.FAILURES + [429] * 2
        assert client.post("/login", data={"username": LOGIN[0], "password": LOGIN[1]}).status_code == 429


def test_a_share_link_that_cannot_be_made_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> str:
        raise RuntimeError("Could not get share link from Gradio API Server.")

    monkeypatch.setattr(server, "setup_tunnel", no_network)
    with pytest.raises(SettingsError, match="without --share"):
        server.share_link(7860)


def test_with_a_login_the_link_is_asked_for_this_port_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the call that needs a network."""
    asked: list[object] = []

    def tunnel(*where: object) -> str:
        asked.extend(where[:2])
        return "https://abc.gradio.live"

    monkeypatch.setattr(server, "setup_tunnel", tunnel)
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda *_, **__: None)
    with access.bind("127.0.0.1", 0) as listening:
        server.serve(FakeEngine(), listening, LOGIN, share=True)
        assert asked == ["127.0.0.1", listening.getsockname()[1]]
    assert "https://abc.gradio.live" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "a.localhost"])
def test_an_address_of_this_machine_needs_no_login(host: str) -> None:
    access.check(host, None)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.4", "8.8.8.8", "example.org", "localhost.evil.org"]
)
def test_an_address_that_others_reach_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match=access.LOGIN):
        access.check(host, None)
    access.check(host, ("me", "long enough"))


def test_a_share_link_needs_one() -> None:
    with pytest.raises(SettingsError, match="share link needs a login"):
        access.check("127.0.0.1", None, share=True)
    access.check("127.0.0.1", ("me", "long enough"), share=True)


def test_it_is_read_from_the_environment_and_taken_out_of_it() -> None:
    environment = {access.LOGIN: "me:pass:with:colons", "OTHER": "stays"}
    assert access.login(environment) == ("me", "pass:with:colons")
    assert environment == {"OTHER": "stays"}
    assert access.login(environment) is None


def test_a_file_goes_before_the_environment_and_its_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file:0123456789\n", encoding="utf-8-sig")
    (tmp_path / "b").write_text("named:0123456789")
    environment = {access.LOGIN: "said:0123456789", access.LOGIN_FILE: str(tmp_path / "b")}
    assert access.login(dict(environment), tmp_path / "a") == ("file", "0123456789")
    assert access.login(dict(environment)) == ("named", "0123456789")
    with pytest.raises(SettingsError, match="Cannot read the login"):
        access.login({}, tmp_path / "none")


@pytest.mark.parametrize("bad", ["", "nobody", ":password", "me:", "me:short"])
def test_a_bad_one_is_refused_without_repeating_it(bad: str) -> None:
    with pytest.raises(SettingsError, match="name:password") as refused:
        access.login({access.LOGIN: bad})
    assert "short" not in str(refused.value).replace("shorter", "")


def test_the_app_refuses_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(access.LOGIN, raising=False)
    monkeypatch.delenv(access.LOGIN_FILE, raising=False)
    monkeypatch.setattr(app, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    assert app.main(["--model", "demo", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert app.main(["--model", "demo", "--share", "--port", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [access.LOGIN in line for line in said] == [True, True]
