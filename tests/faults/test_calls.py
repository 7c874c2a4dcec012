"""Malformed calls to every endpoint of a running app: answered in time, never by a 500, a path or a trace."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.page import build
from tests.browser.conftest import app, fake_page
from tests.fake_engine import FakeEngine

IN_TIME_S = 60.0
LEAKS = re.compile(r"Traceback|site-packages|File \"|line \d+, in |/work/|/root/|/tmp/|/home/|\.py\b")
API = "/gradio_api"

ENDPOINTS: dict[str, list[dict[str, Any]]] = {
    name.strip("/"): found["parameters"]
    for name, found in build(FakeEngine()).get_api_info()["named_endpoints"].items()
}
WORDS = [
    "", " ", "x" * 20_000, "../../etc/passwd", "/etc/passwd", "a' OR 1=1; DROP TABLE runs; --", "{{7*7}}",
    "<script>alert(1)</script>", "${jndi:ldap://x}", "\u0000", "\u202e", "care_over_authority", "nan",
    "example-care-over-authority", "1e999", -1, 0, 10**9, 1e308,
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"url": "file:///etc/passwd"},
    {"__type__": "update"}, [[[[]]]], {"a": {"b": {"c": [1, None]}}}, [float(n) for n in range(100)], [None],
    {"": ""}, {"evaluate": {"vignettes": "/etc/passwd"}}, {"train": 3}, {"rounds": {"x": 1}},
    {"preset": "quick"}, {"model": "/"},
]  # fmt: skip
NESTED = st.recursive(
    st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, width=64)
JUNK = st.none() | st.booleans() | NUMBERS | st.text(max_size=40) | st.sampled_from(WORDS) | NESTED
TAILS = [
    "upload", "file=/etc/passwd", "file=../../app.py", "queue/data?session_hash=a", "call/x/y",
    "call/v2/steer", "heartbeat/",
    "info?all_endpoints=true", "startup-events", "proxy=http://127.0.0.1:1/", "stream/a",
    "mcp/", "component_server", "%00", "..%2f..%2fetc/passwd", "queue/status", "login_check",
]  # fmt: skip
GOOD = {"string": "hello", "number": 0.5, "integer": 4, "boolean": True, "array": [0.5]}


@st.composite
def arguments(draw: st.DrawFn, name: str) -> list[Any]:
    """Positional arguments of which at least one is junk, or too many or too few."""
    parameters = ENDPOINTS[name]
    values = [draw(JUNK) if draw(st.booleans()) else _good(one) for one in parameters]
    if values:
        values[draw(st.integers(0, len(values) - 1))] = draw(JUNK)
    return draw(st.sampled_from([values, values, values, values[:-1], [*values, draw(JUNK)]]))


def _good(parameter: dict[str, Any]) -> Any:
    if parameter.get("parameter_has_default"):
        return parameter.get("parameter_default")
    return GOOD.get(parameter["type"].get("type", "string"), "hello")


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, str, bytes | None]:
    """Method, path and body."""
    kind = draw(st.integers(0, 9))
    name = draw(st.sampled_from(sorted(ENDPOINTS)))
    if kind <= 6:
        return "POST", f"{API}/call/{name}", json.dumps({"data": draw(arguments(name))}).encode()
    if kind == 7:
        said = {
            "data": draw(JUNK),
            "fn_index": draw(JUNK),
            "session_hash": draw(JUNK),
            "event_data": draw(JUNK),
        }
        path = draw(
            st.sampled_from(["queue/join", "run/predict", f"run/{name}", f"api/{name}", "cancel", "reset"])
        )
        return "POST", f"{API}/{path}", json.dumps(said).encode()
    if kind == 8:
        body = draw(
            st.binary(max_size=60) | st.sampled_from([b"{", b"[]", b"null", b"[" * 5000, b'{"data":'])
        )
        return draw(st.sampled_from(["POST", "PUT", "DELETE", "PATCH"])), f"{API}/call/{name}", body
    tail = draw(st.sampled_from([*TAILS, f"call/{name}/none"]))
    return draw(st.sampled_from(["GET", "POST"])), f"{API}/{tail}", None


def ask(client: httpx.Client, method: str, path: str, body: bytes | None) -> None:
    """Fails on a 500, on anything that names a place on the machine, and after `IN_TIME_S`."""
    headers = {"content-type": "application/json"} if body is not None else {}
    reply = client.request(method, path, content=body, headers=headers)
    _sound(reply.status_code, reply.text)
    if reply.status_code == 200 and method == "POST" and path.startswith(f"{API}/call/"):
        event = reply.json()["event_id"]
        told = client.get(f"{path}/{event}")
        assert re.search(r"^event: (complete|error)$", told.text, re.MULTILINE), told.text[-300:]
        _sound(told.status_code, told.text)


def _sound(status: int, text: str) -> None:
    assert status < 500, (status, text[:300])
    found = LEAKS.search(text)
    assert found is None, text[max(0, found.start() - 100) : found.end() + 100]


def storm(url: str, examples: int) -> None:
    with httpx.Client(base_url=url.rstrip("/"), timeout=IN_TIME_S) as client:

        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(calls())
        def one(call: tuple[str, str, bytes | None]) -> None:
            ask(client, *call)

        one()
        body = json.dumps({"data": []}).encode()
        ask(client, "POST", f"{API}/call/describe", body)
        assert client.get("/config").status_code == 200


def test_malformed_calls_to_the_page_over_a_fake_engine(tmp_path: Path) -> None:
    with fake_page(tmp_path, "4", "0") as url:
        storm(url, 40)


@pytest.mark.faults
def test_malformed_calls_to_the_real_app(tmp_path: Path) -> None:
    with app(tmp_path, "--model", "demo", "--runs-at-once", "0") as url:
        storm(url, 500)
