"""One request's two answers as they grow, and what a person is shown of them at a moment."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """One request's two answers as far as they are written: the steered one, and base.

    `known`: base's answer where it was written before; `steer`: none until it was measured.
    """

    asked: Asked
    prompt: tuple[int, ...]
    known: Tokens | None
    steer: Steer | None = None
    steered: list[Token] = field(default_factory=list)
    base: list[Token] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As before its first token."""
        self.steered, self.base = [], list(self.known or ())

    def steered_row(self) -> Row:
        """What is asked of the decode loop for the steered answer."""
        assert self.steer is not None
        request = self.asked.request
        coefficients_L = self.steer.coefficients_KL(request.alpha)[0]
        return Row(self.prompt, coefficients_L, shadow=True, alpha=request.alpha, sample=request.sample)

    def base_row(self) -> Row:
        """The same for base's."""
        return Row(self.prompt, sample=self.asked.request.sample)


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
        pair = self.pair
        if pair is None:
            return SteerFrame((), (), False, self.done, superseded=self.superseded, message=self.message)
        base, steered = pair.base[: self.n_base], pair.steered[: self.n_steered]
        so_far = SteerFrame(
            tuple(base), tuple(steered), self.base_done, self.done, superseded=self.superseded,
            seconds=self.seconds, message=self.message, health=_health(steered, base),
        )  # fmt: skip
        if pair.steer is None:
            return so_far
        alpha, found = pair.asked.request.alpha, pair.steer.calibration
        return replace(
            so_far, dose_nats=pair.steer.nats(alpha), dose_fraction=pair.steer.fraction(alpha),
            c_star=found.c_star, message=self.message or found.message,
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
