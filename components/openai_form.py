"""What a client of OpenAI's chat protocol may ask, as requests to the engine, and how it is refused."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, ValidationError

from steer_heal.config import (
    MAX_NEW_TOKENS,
    MAX_SAMPLES,
    SampleSettings,
    Settings,
    SettingsError,
    TalkRequest,
    Temperature,
    TopP,
    Voice,
    build,
    read_mix,
    sentence,
)

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
    def turn(self) -> dict[str, str]:
        """Who said it, and what."""
        parts = (self.content,) if isinstance(self.content, str) else (part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(parts)}


class StreamOptions(Settings):
    """What a stream holds beside the text: with `include_usage` a last chunk counts the tokens."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatForm(Settings):
    """The body of a chat completion, as far as it is understood here.

    `steering`: a mix such as `0.8 warm - 0.4 formal @answer`; empty is none. Each of `n` choices has random
    numbers of its own, all from `seed`; one is drawn when none is given.
    """

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    steering: str = ""
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES)
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


def request(form: ChatForm, traits: Collection[str], round_: dict[str, Any], seed: int) -> TalkRequest:
    """What is asked of the engine; `round_`: which healed round answers, as fields of `Voice`. One trait
    alone is asked for as the page does, so that both are written in one batch. Raises: `Refusal`."""
    alpha, steered = 0.0, {}
    try:
        mix = read_mix(form.steering, traits) if form.steering.strip() else None
        if mix is not None:
            first, *more = mix.terms
            alone = not (more or first.without or first.ablates)
            alpha = first.weight if alone else 1.0
            trait = {"trait": first.trait, "where": mix.where}
            steered = trait if alone else {"mix": form.steering}
    except SettingsError as error:
        raise Refusal(400, str(error), "steering") from error
    longest = form.max_completion_tokens if form.max_tokens is None else form.max_tokens
    sample = build(
        SampleSettings, seed=seed % 2**31, temperature=form.temperature, top_p=form.top_p,
        max_new_tokens=MAX_NEW_TOKENS if longest is None else longest,
    )  # fmt: skip
    try:
        voice = build(Voice, messages=[one.turn for one in form.messages], alpha=alpha, **round_)
    except SettingsError as error:
        raise Refusal(400, str(error), "messages") from error
    return build(TalkRequest, voices=(voice,), n=form.n, sample=sample, **steered)
