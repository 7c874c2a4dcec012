"""OpenAI's chat protocol over the page's engine: `/v1/models` and `/v1/chat/completions`.

A choice is a request of a session of its own, so it shares batches with the page's and with other clients'.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import dataclass
from itertools import accumulate
from threading import Event
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from components.api import placeless
from components.engine import Engine
from components.openai_form import ChatForm, Refusal, read_form, requests
from steer_heal.config import SettingsError, SteerRequest
from steer_heal.records import Token

LOG = logging.getLogger(__name__)
CHOICES_AT_ONCE = 64
"""Answers of all clients together that are written or waited for at a time."""
OWNER = "steer-heal"
_LEAST_P = 1e-30


@dataclass(frozen=True)
class Piece:
    """What a choice grew by. `finish`: why it ended, empty before; `said`: what is being measured first;
    `n_prompt`: tokens of the prompt."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str = ""
    said: str = ""
    n_prompt: int = 0


Pieces = AsyncGenerator[tuple[int, Piece], None]
"""What all choices grow by, each with its number."""


def written(
    engine: Engine, asked: SteerRequest, stops: tuple[str, ...], session: str
) -> Generator[Piece, None, None]:
    """One choice as it grows: the steered answer, or base's at alpha 0.

    What may yet become one of `stops` is held back; the answer ends before it. Closing ends the work.
    Raises: `SettingsError`, `Refusal` where the server ended it.
    """
    seen, told = 0, 0
    try:
        for frame in engine.steer(asked, session=session):
            tokens, whole = frame.steered, frame.steered_done
            if not asked.alpha:
                tokens, whole = frame.base, frame.base_done
            text = "".join(token.text for token in tokens)
            ends = list(accumulate(len(token.text) for token in tokens))
            cut = min((place for stop in stops if (place := text.find(stop)) >= 0), default=-1)
            if cut >= 0:
                n, upto = sum(end <= cut for end in ends), cut
            else:
                sure = len(text) - (0 if whole else _held_back(text, stops))
                n = sum(end <= sure for end in ends)
                upto = ends[n - 1] if n else 0
            finish = "stop" if cut >= 0 else ""
            if whole and not finish:
                full = len(tokens) >= asked.sample.max_new_tokens
                finish = "length" if full and tokens[-1].text else "stop"
            if n > seen or upto > told or finish or (frame.message and not tokens):
                yield Piece(text[told:upto], tokens[seen:n], finish, frame.message, frame.n_prompt)
            seen, told = n, max(told, upto)
            if finish:
                return
            if frame.done:
                break
    finally:
        engine.stop(session)
    raise Refusal(503, "The server ended this answer: ask again.", code="stopped")


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """How many of the last characters may be the beginning of a stop."""
    starts = (stop[:n] for stop in stops for n in range(1, len(stop)))
    return max((len(start) for start in starts if text.endswith(start)), default=0)


class Protocol:
    """The routes, and the threads on which choices are waited for."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._since = engine, int(time.time())
        self._pool = ThreadPoolExecutor(CHOICES_AT_ONCE, thread_name_prefix="openai")
        self._n_writing = 0

    def routes(self) -> list[Route]:
        """Relative to `/v1`."""
        return [
            Route("/models", self.models),
            Route("/models/{name:path}", self.model),
            Route("/chat/completions", self.complete, methods=["POST"]),
        ]

    def models(self, _request: Request) -> Response:
        """The loaded model, and the healed ones of its finished rounds."""
        return JSONResponse({"object": "list", "data": self._known()})

    def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        found = next((row for row in self._known() if row["id"] == name), None)
        if found is None:
            raise _no_model(name)
        return JSONResponse(found)

    def _known(self) -> list[dict[str, Any]]:
        base = self._engine.info.name
        runs = [
            run
            for run in self._engine.runs.rows()
            if run.model == base and not run.is_example and not run.hidden
        ]
        healed = [f"{base}:{run.run_id}/{number}" for run in runs for number in range(1, run.round + 1)]
        about = {"object": "model", "created": self._since, "owned_by": OWNER}
        return [{"id": name, **about} for name in (base, *healed)]

    def _asked(self, form: ChatForm) -> list[SteerRequest]:
        known = [row["id"] for row in self._known()]
        if form.model not in known:
            raise _no_model(form.model)
        if form.model != known[0]:
            raise Refusal(
                400, f"Healed rounds do not answer over this protocol yet: ask for {known[0]}.", "model",
                "model_not_available",
            )  # fmt: skip
        seed = secrets.randbelow(2**31) if form.seed is None else form.seed % 2**31
        return requests(form, [trait.name for trait in self._engine.traits()], seed)

    async def complete(self, request: Request) -> Response:
        """The answers, whole or as a stream of server-sent events."""
        try:
            form = read_form(json.loads(await request.body()))
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "The body is not JSON.") from error
        asked = await asyncio.to_thread(self._asked, form)
        pieces = self._pieces(asked, form.stops)
        about = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": form.model}
        if form.stream:
            first = await anext(pieces)
            events = _events(form, about, first, pieces)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        whole = asyncio.ensure_future(_whole(form, about, pieces))
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await whole) if whole.done() else Response(status_code=499)
        finally:
            whole.cancel()
            left.cancel()

    async def _pieces(self, asked: list[SteerRequest], stops: tuple[str, ...]) -> Pieces:
        """What all choices grow by, each with its number, as it comes. Raises what ended one of them."""
        if self._n_writing + len(asked) > CHOICES_AT_ONCE:
            raise Refusal(
                429,
                f"{self._n_writing} answers are being written: ask again soon.",
                code="rate_limit_exceeded",
            )
        loop, over = asyncio.get_running_loop(), Event()
        out: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()

        def follow(index: int, request: SteerRequest, session: str) -> None:
            def put(item: Piece | Exception) -> None:
                loop.call_soon_threadsafe(out.put_nowait, (index, item))

            try:
                with closing(written(self._engine, request, stops, session)) as growing:
                    for piece in growing:
                        put(piece)
                        if over.is_set():
                            return
            except Exception as error:  # noqa: BLE001 - raised below, to the client's call
                put(error)

        sessions = [f"openai-{uuid4().hex}" for _ in asked]
        self._n_writing += len(asked)
        try:
            for index, request in enumerate(asked):
                self._pool.submit(follow, index, request, sessions[index])
            n_open = len(asked)
            while n_open:
                index, item = await out.get()
                if isinstance(item, Exception):
                    raise item
                n_open -= bool(item.finish)
                yield index, item
        finally:
            over.set()
            for session in sessions:
                self._engine.stop(session)
            self._n_writing -= len(asked)


async def _left(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(form: ChatForm, about: dict[str, Any], pieces: Pieces) -> dict[str, Any]:
    """The answer in one piece."""
    texts, found = [""] * form.n, [[] for _ in range(form.n)]
    finish, n_prompt, n_tokens = [""] * form.n, 0, 0
    async for index, piece in pieces:
        texts[index] += piece.text
        found[index] += _logprobs(piece)
        finish[index], n_prompt = piece.finish, piece.n_prompt
        n_tokens += len(piece.tokens)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": texts[index], "refusal": None},
            "logprobs": {"content": found[index], "refusal": None} if form.logprobs else None,
            "finish_reason": finish[index],
        }
        for index in range(form.n)
    ]
    return {**about, "object": "chat.completion", "choices": choices, "usage": _usage(n_prompt, n_tokens)}


async def _events(
    form: ChatForm, about: dict[str, Any], first: tuple[int, Piece], rest: Pieces
) -> AsyncGenerator[str, None]:
    """The chunks as server-sent events; what is measured before the first word stands in comments."""
    chunk = {**about, "object": "chat.completion.chunk"}

    def event(index: int, delta: dict[str, str], found: list[dict[str, Any]], finish: str = "") -> str:
        logprobs = {"content": found, "refusal": None} if form.logprobs and found else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish or None}
        return f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"

    for index in range(form.n):
        yield event(index, {"role": "assistant", "content": ""}, [])
    n_tokens = n_prompt = 0
    said = ""
    try:
        async with aclosing(_after(first, rest)) as pieces:
            async for index, piece in pieces:
                n_tokens, n_prompt = n_tokens + len(piece.tokens), piece.n_prompt
                if piece.said != said and not piece.tokens:
                    yield f": {piece.said}\n\n"
                said = piece.said
                if piece.text or piece.tokens:
                    yield event(index, {"content": piece.text}, _logprobs(piece))
                if piece.finish:
                    yield event(index, {}, [], piece.finish)
    except Exception as error:  # noqa: BLE001 - told to the client, whose answer has begun
        yield f"data: {json.dumps(_refusal(error).body)}\n\n"
        return
    if form.stream_options.include_usage:
        yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': _usage(n_prompt, n_tokens)})}\n\n"
    yield "data: [DONE]\n\n"


async def _after(first: tuple[int, Piece], rest: Pieces) -> Pieces:
    yield first
    async with aclosing(rest):
        async for item in rest:
            yield item


def _logprobs(piece: Piece) -> list[dict[str, Any]]:
    return [
        {
            "token": token.text,
            "logprob": math.log(max(token.p, _LEAST_P)),
            "bytes": list(token.text.encode()),
            "top_logprobs": [],
        }
        for token in piece.tokens
    ]


def _usage(n_prompt: int, n_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}


def _no_model(name: str) -> Refusal:
    return Refusal(
        404,
        f"There is no model {name[:80]!r} here: choose one that /v1/models lists.",
        "model",
        "model_not_found",
    )


def _refusal(error: Exception) -> Refusal:
    """What a client is told of the error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, SettingsError):
        return Refusal(400, placeless(str(error)))
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, f"{error.detail}: use /v1/models or /v1/chat/completions.")
    LOG.error("an answer failed", exc_info=error)
    return Refusal(500, "The answer failed, and the server's log says why: ask again.")


async def _refuse(_request: Request, error: Exception) -> Response:
    refusal = _refusal(error)
    return JSONResponse(refusal.body, refusal.status)


def serve(engine: Engine) -> Starlette:
    """The protocol as an application, to be mounted at `/v1`."""
    kinds = (Refusal, SettingsError, HTTPException, Exception)
    return Starlette(routes=Protocol(engine).routes(), exception_handlers=dict.fromkeys(kinds, _refuse))
