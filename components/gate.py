"""What reaches gradio: the routes the page and its clients need, of a size and a form that make sense."""

import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.access import Login, is_loopback
from components.openai_form import Refusal

MAX_BODY_BYTES = 1_000_000
TOO_LARGE = f"At most {MAX_BODY_BYTES} bytes are taken: send less."
FAILURES, WITHIN_S = 10, 60.0
"""So many wrong passwords from one address within so many seconds close the door for as long."""

_SAFE = ("GET", "HEAD", "OPTIONS")
_OPEN = re.compile(r"/(|login/?|logout|favicon\.ico|robots\.txt|theme\.css|(static|assets|svelte)/.+)")
"""What somebody who has not logged in may have: the login page."""
_ROUTES = re.compile(
    r"/(config/?|manifest\.json|ui/[^/]+|v1/(models(/.+)?|chat/completions)|gradio_api/("
    r"info/?|openapi\.json|user/?|login_check/?|token/?|app_id/?|theme\.css|startup-events|queue/(join|data)|"
    r"(run|api|call)/[^/]+/?|call/(?!v2/)[^/]+/[^/]+|cancel|reset/?|heartbeat/[^/]+|file=.+|mcp(/.*)?))"
)
_PROTOCOL = "/v1/"
_UPLOADS = re.compile(r"/gradio_api/upload(_progress)?")
_STREAM = re.compile(r"/gradio_api/(queue/data|call/[^/]+/(?P<event>[^/]+))")
_CALL = re.compile(r"/gradio_api/(?:(?P<queued>queue/join)|(?:(?P<kind>run|api|call)/(?P<name>[^/]+)/?))")


class Gate:
    """ASGI middleware in front of the page.

    `page`: gradio's Blocks. `knows`: whether a session's cookies are those of somebody who
    logged in; None without a login, when the page answers only under this machine's own names (a web page
    elsewhere could otherwise reach it through a name of its own). `login`: what a program of OpenAI's
    protocol may give as its key instead, as name:password.
    """

    def __init__(
        self,
        app: ASGIApp,
        page: Any,
        *,
        knows: Callable[[dict[str, str]], bool] | None = None,
        login: Login | None = None,
    ) -> None:
        self._app, self._knows = app, knows
        self._key = None if login is None else ":".join(login).encode()
        self._functions, self._queue = page.fns, page._queue
        public = [fn for fn in page.fns.values() if fn.api_visibility != "private"]
        self._takes = {fn.api_name: len([one for one in fn.inputs if not one.skip_api]) for fn in public}
        self._failures: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = False

        async def begin(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            if message["type"] == "http.response.start" and scope["path"].rstrip("/") == "/login":
                self._note(scope, message["status"])
            await send(message)

        try:
            self._admit(scope)
            self._check_stream(scope)
            checked = await self._checked(scope, receive)
            await self._app(scope, checked, begin)
        except Refusal as refused:
            if began:
                raise
            openai = scope["path"].startswith(_PROTOCOL)
            body = refused.body if openai else {"error": str(refused)}
            await JSONResponse(body, refused.status)(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._knows is None and not is_loopback(name.strip("[]")):
            raise Refusal(403, "Without a login this page answers only as localhost: start it with one.")
        if _UPLOADS.fullmatch(path):
            raise Refusal(404, "This page takes no files.")
        if not (_OPEN.fullmatch(path) or _ROUTES.fullmatch(path)):
            raise Refusal(404, "There is nothing here.")
        if scope["method"] not in _SAFE and headers.get("sec-fetch-site") == "cross-site":
            raise Refusal(403, "This came from another site's page: use this page itself.")
        if path.rstrip("/") == "/login":
            self._not_too_often(scope)
        elif self._knows is not None and not _OPEN.fullmatch(path) and not self._knows(_cookies(headers)):
            self._check_key(scope, headers)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        """Whether a program that did not log in on the page has the login as its key."""
        kind, _, key = headers.get("authorization", "").partition(" ")
        if not scope["path"].startswith(_PROTOCOL):
            raise Refusal(401, "Log in first.")
        if kind.lower() != "bearer" or not key:
            raise Refusal(401, "This page has a login: give name:password as the API key.")
        self._not_too_often(scope)
        if self._key is None or not secrets.compare_digest(key.strip().encode("latin-1"), self._key):
            self._note(scope, 400)
            raise Refusal(401, "The API key is wrong: give the page's login, as name:password.")

    def _check_stream(self, scope: Scope) -> None:
        """Only what was asked for can be listened to: gradio would begin a stream and break it off."""
        listening = _STREAM.fullmatch(scope["path"])
        if listening is None or scope["method"] != "GET":
            return
        waiting = self._queue.pending_messages_per_session
        event = listening["event"]
        if event is None:
            known = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0] in waiting
        else:
            ended = self._queue.pending_event_ids_session.values()
            known = event in self._queue.event_ids_to_events or any(event in ids for ids in ended)
        if not known:
            raise Refusal(404, "Nothing was asked for under that id.")

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that ends at the size limit, and for calls has been read and looked at."""
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > MAX_BODY_BYTES:
            raise Refusal(413, TOO_LARGE)
        limited = _limited(receive)
        called = _CALL.fullmatch(scope["path"])
        if called is None or scope["method"] != "POST":
            return limited
        body = await _read(limited)
        self._check_call(body, called)
        return _replay(body, receive)

    def _check_call(self, body: bytes, called: re.Match[str]) -> None:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refusal(422, "The body is not JSON.") from error
        data = said.get("data") if isinstance(said, dict) else None
        if not isinstance(data, list):
            raise Refusal(422, 'The body must be an object with a list "data".')
        session = said.get("session_hash")
        if session is not None and not (isinstance(session, str) and 0 < len(session) <= 64):
            raise Refusal(422, "session_hash must be a text of at most 64 characters.")
        index, name = said.get("fn_index"), called["name"]
        if called["kind"] == "call":
            if name not in self._takes or index is not None:
                known = ", ".join(sorted(self._takes))
                raise Refusal(404, f"There is no endpoint of that name: choose one of {known}.")
            if len(data) != self._takes[name]:
                raise Refusal(422, f"{name} takes {self._takes[name]} values and got {len(data)}.")
            return
        function = self._functions.get(index) if type(index) is int else None
        if function is None:
            raise Refusal(404, "There is no function of that index.")
        if called["kind"] and (function.queue or len(data) != len(function.inputs)):
            raise Refusal(404, "This function is not called that way: join the queue.")

    def _note(self, scope: Scope, status: int) -> None:
        """Remembers a wrong password."""
        if status == 400:
            self._failures.setdefault(_visitor(scope), deque(maxlen=FAILURES)).append(time.monotonic())

    def _not_too_often(self, scope: Scope) -> None:
        now = time.monotonic()
        self._failures = {who: when for who, when in self._failures.items() if now - when[-1] < WITHIN_S}
        if len(self._failures.get(_visitor(scope), ())) >= FAILURES:
            raise Refusal(429, f"Too many wrong passwords: wait {WITHIN_S:.0f} seconds.")


def _visitor(scope: Scope) -> str:
    return (scope.get("client") or ("", 0))[0]


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _limited(receive: Receive) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BODY_BYTES:
            raise Refusal(413, TOO_LARGE)
        return message

    return counted


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
