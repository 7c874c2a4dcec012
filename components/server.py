"""Serve the page: a socket bound before anything slow, its files from this machine only."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp

from components.page import build
from components.theme import CSS, PLOTLY_JS, STATIC, theme
from steer_heal.config import SettingsError

SCRIPTS = {"plotly.min.js": PLOTLY_JS, "page.js": STATIC / "page.js"}
THREADS = 128


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, so that a port in use is known before a model loads. Errors: `SettingsError`."""
    if not 0 <= port <= 65535:
        raise SettingsError(f"{port} is not a port: choose one from 1 to 65535 with --port.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as problem:
        listening.close()
        reason = problem.strerror or str(problem)
        raise SettingsError(
            f"Cannot listen on {host}:{port} ({reason}): choose another with --port."
        ) from problem
    return listening


def scripts() -> ASGIApp:
    """The two scripts of the page and nothing else, compressed, cached by the browser until they change."""
    files = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @files.get("/{name}")
    def script(name: str) -> Response:
        path = SCRIPTS.get(name)
        if path is None:
            return Response(status_code=404)
        return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    return GZipMiddleware(files, compresslevel=5)


def application(engine: Any, port: int) -> fastapi.FastAPI:
    """The whole web application over an engine."""
    page = build(engine)
    page.max_threads = THREADS
    page.queue(default_concurrency_limit=16)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/ui", scripts())
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name="127.0.0.1",
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size="1mb",
        ssr_mode=False,
        pwa=False,
        mcp_server=find_spec("mcp") is not None,
        theme=theme(),
        css_paths=CSS,
    )


def serve(engine: Any, listening: socket.socket) -> None:
    """Serve until interrupted; says where on stdout once it answers."""
    host, port = listening.getsockname()[:2]
    app = application(engine, port)
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    shown = f"[{host}]" if ":" in host else host
    print(f"Steer & Heal with {engine.info.name}: http://{shown}:{port}", flush=True)
    uvicorn.Server(settings).run(sockets=[listening])
