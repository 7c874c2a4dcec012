"""Serve the page, its files from this machine only."""

import logging
import secrets
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import fastapi
import gradio as gr
import httpx
import uvicorn
from gradio.exceptions import ShareCertificateWriteError
from gradio.networking import setup_tunnel
from gradio.routes import App
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from components import openai_api, words
from components.access import Login
from components.engine import Engine
from components.gate import Gate
from components.page import build
from components.theme import CSS, PAGE_HEAD, PLOTLY_JS, STATIC, theme
from steer_heal.config import SettingsError

FILES = {
    "plotly.min.js": PLOTLY_JS,
    **{name: STATIC / name for name in ("page.js", "stream.js")},
    **{name: Path(__file__).parents[1] / "docs" / name for name in words.WORDS},
}
"""By its name under `ui/`: what the page needs, and the documents that its words point to."""
THREADS = 256
CALLS_AT_ONCE = 64
"""Calls of one endpoint that are answered at a time; an answer that streams is one until its end."""
LOOK_S = 0.01
"""How often an idle queue looks for calls. Gradio's own thousand times a second takes the interpreter away
from the model's thread as often."""
MAX_SESSIONS = 200
"""Sessions whose state is kept, 0.2 MB each (a program's call is one); the one unused longest goes first."""
MAX_WAITING = 512
"""Calls that may wait in the queue; the next one is told that it is full."""


def own_files(engine: Engine) -> ASGIApp:
    """The page's scripts and documents, compressed, cached by the browser until they change; and `mark`, with
    which server it is, the one value that an open page asks for again and again: unchanged means that
    there is nothing to redraw."""
    files = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    started = secrets.token_hex(4)

    @files.get("/mark")
    def mark() -> Response:
        return PlainTextResponse(
            engine.runs.watermark(), headers={"Cache-Control": "no-store", "X-Started": started}
        )

    @files.get("/{name}")
    def file(name: str) -> Response:
        path = FILES.get(name)
        if path is None or not path.is_file():
            return Response(status_code=404)
        kind = "text/javascript" if path.suffix == ".js" else "text/plain; charset=utf-8"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    return GZipMiddleware(files, minimum_size=1000, compresslevel=5)


def application(engine: Engine, port: int, login: Login | None = None) -> ASGIApp:
    """The whole web application over an engine; with a login nobody else sees more than the login page."""
    page = build(engine)
    page.max_threads = THREADS
    page.state_session_capacity = MAX_SESSIONS
    page.queue(default_concurrency_limit=CALLS_AT_ONCE, max_size=MAX_WAITING, api_open=False)
    page._queue.sleep_when_free = LOOK_S
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/ui", own_files(engine))
    app.mount("/v1", openai_api.serve(engine))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name="127.0.0.1",
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        auth=login,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=find_spec("mcp") is not None,
        theme=theme(),
        css_paths=CSS,
        head=PAGE_HEAD,
    )
    mounted = (route.app for route in app.routes if isinstance(route, Mount))
    gradio_app = next(inner for inner in mounted if isinstance(inner, App))

    def knows(cookies: dict[str, str]) -> bool:
        names = (f"access-token-{gradio_app.cookie_id}", f"access-token-unsecure-{gradio_app.cookie_id}")
        return any(cookies.get(name) in gradio_app.tokens for name in names)

    return Gate(
        app,
        page,
        knows=None if login is None else knows,
        login=login,
    )


def share_link(port: int) -> str:
    """A public address for a page of this machine, through gradio's own tunnel. Errors: `SettingsError`."""
    try:
        return setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), None, None)
    except (RuntimeError, OSError, ValueError, httpx.HTTPError, ShareCertificateWriteError) as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise SettingsError(f"A share link cannot be made ({reason}): start without --share.") from problem


def serve(
    engine: Engine,
    listening: socket.socket,
    login: Login | None = None,
    *,
    share: bool = False,
    begin: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve until interrupted; says where on stdout once it answers. `begin` is called when the page is
    built, with what ends the serving."""
    host, port = listening.getsockname()[:2]
    app = application(engine, port, login)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    shown = f"[{host}]" if ":" in host else host
    print(f"Steer & Heal with {engine.info.name}: http://{shown}:{port}", flush=True)
    if share:
        print(f"For everyone who has the login: {share_link(port)}", flush=True)
    server = uvicorn.Server(settings)
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)  # by what it cuts off
    if begin is not None:
        begin(lambda: setattr(server, "should_exit", True))
    server.run(sockets=[listening])
