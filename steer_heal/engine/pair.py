"""One request's two answers as they grow, and what a person is shown of them at a moment."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from steer_heal.config import MAX_PROMPT_TOKENS, SettingsError, SteerRequest
from steer_heal.engine.vectors import Steer
from steer_heal.filter import health
from steer_heal.generate import Row
from steer_heal.models import LanguageModel, user
from steer_heal.records import SteerFrame, TextHealth, Token

LEAST_TOKENS = 4
"""A text shorter than this has no health to speak of."""

_LEAST_P = 1e-30

Tokens = tuple[Token, ...]


@dataclass(frozen=True)
class Asked:
    """A request, and when it came, by `time.perf_counter`."""

    request: SteerRequest
    at: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class Pair:
    """One request's two answers as far as they are written: the steered one, and base."""

    asked: Asked
    prompt: tuple[int, ...]
    steer: Steer
    known: Tokens | None
    steered: list[Token] = field(default_factory=list)
    base: list[Token] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As before its first token."""
        self.steered, self.base = [], list(self.known or ())

    def rows(self) -> list[tuple[list[Token], Row]]:
        """Where each row's tokens go, and what is asked of the decode loop."""
        request = self.asked.request
        coefficients_L = self.steer.coefficients_KL(request.alpha)[0]
        steered = Row(self.prompt, coefficients_L, shadow=True, alpha=request.alpha, sample=request.sample)
        if self.known is not None:
            return [(self.steered, steered)]
        return [(self.steered, steered), (self.base, Row(self.prompt, sample=request.sample))]


@dataclass(frozen=True)
class Moment:
    """How far a pair was when it was told; `frame` is made of it by who reads it, so that the model need not
    wait for that."""

    pair: Pair | None
    n_steered: int = 0
    n_base: int = 0
    base_done: bool = False
    done: bool = False
    superseded: bool = False
    seconds: float = 0.0
    message: str = ""

    def frame(self) -> SteerFrame:
        """Both answers as far as they were, with health, dose and c*."""
        if self.pair is None:
            return SteerFrame((), (), False, self.done, superseded=self.superseded, message=self.message)
        steer, alpha = self.pair.steer, self.pair.asked.request.alpha
        base, steered = self.pair.base[: self.n_base], self.pair.steered[: self.n_steered]
        return SteerFrame(
            tuple(base), tuple(steered), self.base_done, self.done, superseded=self.superseded,
            seconds=self.seconds, health=_health(steered, base), dose_nats=steer.nats(alpha),
            dose_fraction=steer.fraction(alpha), c_star=steer.calibration.c_star,
            message=self.message or steer.calibration.message,
        )  # fmt: skip


def encode(lm: LanguageModel, prompt: str) -> tuple[int, ...]:
    """The prompt as a user's turn. Raises: `SettingsError` when it is too long."""
    ids = tuple(lm.encode_chat([user(prompt)]))
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SettingsError(f"The prompt has {len(ids)} tokens: shorten it to {MAX_PROMPT_TOKENS} or fewer.")
    return ids


def _health(steered: Sequence[Token], base: Sequence[Token]) -> TextHealth | None:
    """Health of the steered text so far; the base's own text so far gives the unit of perplexity."""
    if len(steered) < LEAST_TOKENS or len(base) < LEAST_TOKENS:
        return None
    own = math.exp(min(-fmean(math.log(max(token.p, _LEAST_P)) for token in base), 100.0))
    logp = [math.log(max(token.p_base, _LEAST_P)) for token in steered if token.p_base is not None]
    kl = [token.kl for token in steered if token.kl is not None]
    return health("".join(token.text for token in steered), logp, own, kl=kl)
