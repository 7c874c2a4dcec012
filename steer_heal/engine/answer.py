"""One request's two answers as they grow, and what a person is shown of them at a moment."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from steer_heal.config import MAX_PROMPT_TOKENS, SettingsError, SteerRequest
from steer_heal.engine.vectors import Steer
from steer_heal.evaluate.text_health import health, perplexity
from steer_heal.generate import Row
from steer_heal.models import LanguageModel, user
from steer_heal.records import SteerFrame, TextHealth, Token

LEAST_TOKENS = 4
"""A text shorter than this has no health to speak of."""

_LEAST_P = 1e-30

Tokens = tuple[Token, ...]
About = tuple[float | None, float | None]


@dataclass(frozen=True)
class Asked:
    """A request, and when it came, by `time.perf_counter`."""

    request: SteerRequest
    at: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class Pair:
    """One request's two answers as far as they are written: the steered one, and base.

    `known`: base's answer where it was written before; `steer`: none until it was measured; `about`: the
    relevance of the steered answer and of base's, once both are whole.
    """

    asked: Asked
    prompt: tuple[int, ...]
    known: Tokens | None
    steer: Steer | None = None
    steered: list[Token] = field(default_factory=list)
    base: list[Token] = field(default_factory=list)
    about: About = (None, None)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As before its first token."""
        self.steered, self.base = [], list(self.known or ())

    def steered_row(self) -> Row:
        """What is asked of the decode loop for the steered answer."""
        assert self.steer is not None
        request = self.asked.request
        coefficients_L = self.steer.coefficients_RL(request.alpha)[0]
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
        steered_health, base_health = healths(steered, base, pair.about if self.done else (None, None))
        so_far = SteerFrame(
            tuple(base), tuple(steered), self.base_done, self.done, superseded=self.superseded,
            seconds=self.seconds, message=self.message, health=steered_health, base_health=base_health,
        )  # fmt: skip
        if pair.steer is None:
            return so_far
        alpha, found = pair.asked.request.alpha, pair.steer.calibration
        nats, beyond = pair.steer.nats(alpha) or (None, False)
        return replace(
            so_far, dose_nats=nats, dose_beyond=beyond, dose_fraction=pair.steer.fraction(alpha),
            c_star=found.c_star, message=self.message or found.message,
        )  # fmt: skip


def encode(lm: LanguageModel, prompt: str) -> tuple[int, ...]:
    """The prompt as a user's turn. Raises: `SettingsError` when it is too long."""
    ids = tuple(lm.encode_chat([user(prompt)]))
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SettingsError(f"The prompt has {len(ids)} tokens: shorten it to {MAX_PROMPT_TOKENS} or fewer.")
    return ids


def base_logp(tokens: Sequence[Token]) -> list[float]:
    """Log-probs of the tokens under base; of base's own tokens they are those they were drawn with."""
    p = [token.p if token.p_base is None else token.p_base for token in tokens]
    return [math.log(max(value, _LEAST_P)) for value in p]


def healths(steered: Sequence[Token], base: Sequence[Token], about: About) -> Iterator[TextHealth | None]:
    """Health of the steered text so far and of base's, whose own text so far is the unit of both."""
    if len(steered) < LEAST_TOKENS or len(base) < LEAST_TOKENS:
        yield from (None, None)
        return
    own = perplexity(base_logp(base))
    for tokens, value in zip((steered, base), about, strict=True):
        kl = [token.kl for token in tokens if token.kl is not None]
        text = "".join(token.text for token in tokens)
        yield health(text, base_logp(tokens), own, kl=kl, relevance=value, own_relevance=about[1])
