"""A conversation: what was said in turns, and who answers: base, the steered model or a healed round."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_heal.config.base import (
    MAX_CHAT_CHARS,
    MAX_PROMPT_CHARS,
    MAX_ROUNDS,
    Alpha,
    Settings,
    SettingsError,
    build,
    check_run_id,
)
from steer_heal.config.requests import Added, SteerRequest

MAX_VOICES = 4
MAX_SAMPLES = 8
MAX_MESSAGES = 401
BASE, STEERED = "base", "steered"


class Turn(Settings):
    """One message. What somebody typed stays below the limit of a prompt; what a model wrote always does."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_PROMPT_CHARS)


class Voice(Settings):
    """Who answers, and what was said before: with the adapters of `run` up to its `round` where a run is
    named, at `alpha` in units of c*.

    The last message is a user's; in which order others may come, the model's chat template says.
    """

    messages: tuple[Turn, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    alpha: Alpha = 0.0
    run: str = ""
    round: int = Field(default=0, ge=0, le=MAX_ROUNDS)

    @field_validator("messages")
    @classmethod
    def _to_be_answered(cls, messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
        n_chars = sum(len(turn.content) for turn in messages)
        if messages[-1].role != "user":
            raise ValueError("messages must end with a user's: add one")
        if not messages[-1].content.strip():
            raise ValueError("messages end with an empty one: type something")
        if n_chars > MAX_CHAT_CHARS:
            raise ValueError(
                f"messages have {n_chars} characters together: leave out earlier ones until they have "
                f"{MAX_CHAT_CHARS} or fewer"
            )
        return messages

    @model_validator(mode="after")
    def _of_a_run(self) -> Self:
        if bool(self.run) != bool(self.round):
            raise ValueError("a healed round has a run and a number from 1: give both or neither")
        return self


class TalkRequest(Added):
    """The next answers of up to four voices, `n` of each; what steers those with an alpha is as in
    `SteerRequest`. Answers of one number share their random numbers."""

    voices: tuple[Voice, ...] = Field(min_length=1, max_length=MAX_VOICES)
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES)

    @property
    def is_steered(self) -> bool:
        """Whether one of the voices is."""
        return any(voice.alpha for voice in self.voices)

    def steering(self, alpha: float = 1.0) -> SteerRequest:
        """What is added at this alpha. Errors: `SettingsError`."""
        added = {name: getattr(self, name) for name in Added.model_fields}
        return build(SteerRequest, prompt="?", alpha=alpha, **added)


def read_voice(name: str, alpha: float) -> dict[str, object]:
    """What a voice's name says, as fields of `Voice`: `base`, `steered` (at this alpha) or `RUN/ROUND`.

    Errors: `SettingsError`.
    """
    if name in (BASE, STEERED):
        return {"alpha": alpha if name == STEERED else 0.0}
    run, slash, number = name.rpartition("/")
    if not slash or not number.isdecimal() or not 1 <= int(number) <= MAX_ROUNDS:
        raise SettingsError(f"{name[:80]!r} is nobody who answers: give {BASE}, {STEERED} or RUN/ROUND.")
    return {"run": check_run_id(run), "round": int(number)}
