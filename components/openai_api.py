"""OpenAI's chat protocol over the page's engine: `/v1/models` and `/v1/chat/completions`.

A call is a conversation with one voice, so it shares batches with the page's and with other clients'.
"""

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from components.api import placeless
from components.engine import Engine
from components.openai_form import ChatForm, Refusal, read_form, request
from components.talking import healed_rounds
from steer_heal.config import SettingsError, TalkRequest, read_voice
from steer_heal.records import Spoken, Token

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


@dataclass
class Choice:
    """One choice as far as it was told: how many tokens and characters, and why it ended."""

    stops: tuple[str, ...]
    n_tokens: int = 0
    n_chars: int = 0
    finish: str = ""

    def grown(self, spoken: Spoken) -> Piece:
        """What is new in it. What may yet become one of the stops is held back; it ends before one."""
        text, ends = spoken.text, list(accumulate(len(token.text) for token in spoken.tokens))
        cut = min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            n, upto = sum(end <= cut for end in ends), cut
        else:
            sure = len(text) - (0 if spoken.finish else _held_back(text, self.stops))
            n = sum(end <= sure for end in ends)
            upto = ends[n - 1] if n else 0
        self.finish = "stop" if cut >= 0 else spoken.finish
        piece = Piece(text[self.n_chars : upto], spoken.tokens[self.n_tokens : n], self.finish)
        self.n_tokens, self.n_chars = n, max(self.n_chars, upto)
        return piece


def written(
    engine: Engine, asked: TalkRequest, stops: tuple[str, ...], session: str
) -> Generator[tuple[int, Piece], None, None]:
    """What all choices grow by, each with its number, as it comes. Closing ends the work.

    Raises: `SettingsError`, `Refusal` where the server ended it.
    """
    choices = [Choice(stops) for _ in range(asked.n)]
    try:
        for frame in engine.talk(asked, session=session):
            if frame.message and not frame.done:
                yield 0, Piece(said=frame.message)
            for index, spoken in enumerate(frame.voices[0] if frame.voices else ()):
                if not choices[index].finish:
                    piece = choices[index].grown(spoken)
                    if piece.text or piece.tokens or piece.finish:
                        yield index, replace(piece, n_prompt=frame.n_prompt)
            if all(choice.finish for choice in choices):
                return
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
        healed = [f"{base}:{name}" for name in healed_rounds(self._engine)]
        about = {"object": "model", "created": self._since, "owned_by": OWNER}
        return [{"id": name, **about} for name in (base, *healed)]

    def _asked(self, form: ChatForm) -> TalkRequest:
        base = self._engine.info.name
        seed = secrets.randbelow(2**31) if form.seed is None else form.seed
        if form.model != base:
            # So that a client that sends no fields of its own can steer too.
            name, _, added = form.model.partition("+")
            form = form.model_copy(update={"model": name.strip(), "steering": form.steering or added})
        traits = [trait.name for trait in self._engine.traits()]
        return request(form, traits, self._round(form.model), seed)

    def _round(self, name: str) -> dict[str, Any]:
        """Which healed round is asked for, as fields of `Voice`; whether it is there the engine will see."""
        base = self._engine.info.name
        healed = name.removeprefix(f"{base}:")
        if name == base:
            return {}
        if healed == name or "/" not in healed:
            raise _no_model(name)
        return read_voice(healed, 0.0)

    async def complete(self, call: Request) -> Response:
        """The answers, whole or as a stream of server-sent events."""
        try:
            form = read_form(json.loads(await call.body()))
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
        left = asyncio.ensure_future(_left(call))
        try:
            await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await whole) if whole.done() else Response(status_code=499)
        finally:
            whole.cancel()
            left.cancel()

    async def _pieces(self, asked: TalkRequest, stops: tuple[str, ...]) -> Pieces:
        """What all choices grow by, each with its number, as it comes. Raises what ended them."""
        if self._n_writing + asked.n > CHOICES_AT_ONCE:
            raise Refusal(
                429,
                f"{self._n_writing} answers are being written: ask again soon.",
                code="rate_limit_exceeded",
            )
        loop, session = asyncio.get_running_loop(), f"openai-{uuid4().hex}"
        growing = written(self._engine, asked, stops, session)
        self._n_writing += asked.n
        try:
            while (item := await loop.run_in_executor(self._pool, next, growing, None)) is not None:
                yield item
        finally:
            self._engine.stop(session)
            self._n_writing -= asked.n


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
