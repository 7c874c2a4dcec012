"""What a client of OpenAI's chat protocol may ask, as requests to the engine, and how it is refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, ValidationError

from steer_heal.config import (
    EVERYWHERE,
    MAX_NEW_TOKENS,
    SampleSettings,
    Settings,
    SettingsError,
    SteerRequest,
    Temperature,
    TopP,
    build,
    read_mix,
    sentence,
)

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 100
_LABELS = (
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store",
    "user",
)  # fmt: skip
"""Fields with which a client marks its call; no answer depends on them."""
_TEXT = {"type": "text"}
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refusal(Exception):
    """A call that is not answered, as OpenAI's clients read it: status, one sentence, the field that is at
    fault, and a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error form."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Part(Settings):
    """A piece of a message; only text is read."""

    type: Literal["text"]
    text: str


class Message(Settings):
    """One turn of the chat; `developer` is OpenAI's newer name for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...]
    name: str = ""

    @property
    def turn(self) -> tuple[str, str]:
        """Who said it, and what."""
        parts = (self.content,) if isinstance(self.content, str) else (part.text for part in self.content)
        return "system" if self.role == "developer" else self.role, "".join(parts)


class StreamOptions(Settings):
    """What a stream holds beside the text: with `include_usage` a last chunk counts the tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatForm(Settings):
    """The body of a chat completion, as far as it is understood here.

    `steering`: a mix such as `0.8 warm - 0.4 formal @answer`; empty is base. Each of `n` choices has a seed
    of its own, from `seed` on; one is drawn when none is given.
    """

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    steering: str = ""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    logprobs: bool = False
    top_logprobs: Literal[0] = 0
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return tuple(filter(None, (self.stop,) if isinstance(self.stop, str) else self.stop))


def read_form(body: Any) -> ChatForm:
    """The call. Fields that say nothing (null, an empty list, a penalty of 0) count as left out.

    Raises: `Refusal`, also for a field that would change the answer and is not understood.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "The body must be a JSON object.")
    said = {key: value for key, value in body.items() if value is not None and key not in _LABELS}
    unknown = [key for key in said if key not in ChatForm.model_fields]
    for key in unknown:
        if said[key] and said[key] != _TEXT:
            what = f"{key[:60]} is not understood here: leave it out."
            raise Refusal(400, what, key[:60], "unsupported_parameter")
        del said[key]
    if isinstance(said.get("messages"), list):
        said["messages"] = [_of_value(message) for message in said["messages"]]
    try:
        form = ChatForm(**said)
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal(
            400, sentence(first, "the body"), str(first["loc"][0]) if first["loc"] else None
        ) from error
    if form.messages[-1].role != "user":
        raise Refusal(400, "The last message must be the user's: add one.", "messages")
    if len(form.stops) > MAX_STOPS:
        raise Refusal(400, f"stop holds {len(form.stops)} texts: give {MAX_STOPS} or fewer.", "stop")
    if any(len(stop) > MAX_STOP_CHARS for stop in form.stops):
        raise Refusal(400, f"A text of stop is too long: give {MAX_STOP_CHARS} characters or fewer.", "stop")
    return form


def _of_value(message: Any) -> Any:
    """A message without the fields that hold nothing: clients send back an answer as it came."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value or key == "content"}


def requests(form: ChatForm, traits: Collection[str], seed: int) -> list[SteerRequest]:
    """What is asked of the engine, a request a choice. One trait alone is asked for as the page does, so that
    both are written in one batch. Raises: `Refusal`."""
    steered: dict[str, Any] = {"alpha": 0.0}
    try:
        mix = read_mix(form.steering, traits) if form.steering.strip() else None
        if mix is not None:
            first, *more = mix.terms
            alone = not (more or first.without or first.ablates)
            steered = {"trait": first.trait, "alpha": first.weight} if alone else {"mix": form.steering}
            steered["where"] = mix.where if alone else EVERYWHERE
    except SettingsError as error:
        raise Refusal(400, str(error), "steering") from error
    longest = form.max_completion_tokens if form.max_tokens is None else form.max_tokens
    drawn = {"temperature": form.temperature, "top_p": form.top_p}
    drawn |= {"max_new_tokens": MAX_NEW_TOKENS if longest is None else longest}
    *earlier, (_, prompt) = (message.turn for message in form.messages)
    try:
        samples = [build(SampleSettings, seed=(seed + i) % 2**31, **drawn) for i in range(form.n)]
        return [
            build(SteerRequest, prompt=prompt, earlier=tuple(earlier), sample=sample, **steered)
            for sample in samples
        ]
    except SettingsError as error:
        raise Refusal(400, str(error), "messages") from error
