"""One request's two answers as they grow, and what a person is shown of them at a moment."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

from steer_heal.config import EVERYWHERE, MAX_PROMPT_TOKENS, SettingsError, SteerRequest
from steer_heal.dose.mixed import Steered
from steer_heal.engine.healed import MODEL, Place
from steer_heal.evaluate.text_health import health, perplexity
from steer_heal.generate import Row
from steer_heal.models import LanguageModel, user
from steer_heal.records import SteerFrame, TextHealth, Token
from steer_heal.vectors.probe import Probe

LEAST_TOKENS = 4
"""A text shorter than this has no health to speak of."""

_LEAST_P = 1e-30

Tokens = tuple[Token, ...]
Writing = tuple[list[Token], Row, Place]
"""Where a text's tokens go, what is asked of the decode loop for it, and whose weights write it."""
About = tuple[float | None, float | None]
Moment = Callable[[], SteerFrame]


@dataclass(eq=False)
class Answer:
    """One request's two answers as far as they are written: the steered one, and base.

    `since`: when it was asked, or began to be written, by `time.monotonic`; `known`: base's answer where it
    was written before; `steered_by`: none until it was measured; `about`: the relevance of the steered answer
    and of base's, once both are whole; `probe`: what tells tokens what they carry, where that is asked for.
    """

    asked: SteerRequest
    since: float
    prompt: tuple[int, ...]
    known: Tokens | None
    steered_by: Steered | None = None
    steered: list[Token] = field(default_factory=list)
    base: list[Token] = field(default_factory=list)
    about: About = (None, None)
    probe: Probe | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As before its first token."""
        self.steered, self.base = [], list(self.known or ())

    def writings(self, *, steered: bool) -> list[Writing]:
        """The steered text, or base's where it has yet to be written, and what is asked for it."""
        sample = self.asked.sample
        if not steered:
            return [] if self.known is not None else [(self.base, Row(self.prompt, sample=sample), MODEL)]
        assert self.steered_by is not None
        alpha, where = self.asked.alpha, self.asked.gate
        coefficients_L = self.steered_by.coefficients_RL(alpha)[0]
        row = Row(self.prompt, coefficients_L, shadow=True, alpha=alpha, sample=sample, where=where)
        return [(self.steered, row, MODEL)]

    def carries(self, seen_K: Sequence[float]) -> float:
        """What a token carries of the trait, by what the probe saw: the mean over the steered layers."""
        assert self.probe is not None
        assert self.steered_by is not None
        own = self.steered_by.layers
        return fmean(z for layer, z in zip(self.probe.layers, seen_K, strict=True) if layer in own)

    def moment(self, **more: Any) -> Moment:
        """What makes a frame of how far both answers are now. Whoever reads it calls it, so that the model
        need not wait for what a frame takes."""
        seconds = time.monotonic() - self.since
        return partial(self._frame, len(self.steered), len(self.base), seconds=seconds, **more)

    def _frame(self, n_steered: int, n_base: int, **more: Any) -> SteerFrame:
        """Both answers as far as they were, with health, dose and c*; `more`: what else the frame says."""
        base, steered = self.base[:n_base], self.steered[:n_steered]
        steered_health, base_health = healths(steered, base, self.about if more.get("done") else (None, None))
        so_far = SteerFrame(
            tuple(base), tuple(steered), health=steered_health, base_health=base_health,
            **{"base_done": False, "done": False, **more},
        )  # fmt: skip
        if self.steered_by is None:
            return so_far
        alpha = self.asked.alpha
        # What is known of doses is of texts that are steered everywhere.
        known = self.steered_by.nats(alpha) if self.asked.gate == EVERYWHERE else None
        nats, beyond = known or (None, False)
        return replace(
            so_far, dose_nats=nats, dose_beyond=beyond, dose_fraction=self.steered_by.fraction(alpha),
            c_star=self.steered_by.c_star, message=so_far.message or self.steered_by.message,
        )  # fmt: skip


def encode(lm: LanguageModel, prompt: str) -> tuple[int, ...]:
    """The prompt as a user's turn. Raises: `SettingsError` when it has too many tokens."""
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
