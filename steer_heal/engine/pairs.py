"""A base and a steered answer, written together and told token by token."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

from steer_heal import data
from steer_heal.config import MAX_PROMPT_TOKENS, SettingsError, SteerRequest
from steer_heal.engine.turns import Ticket
from steer_heal.engine.vectors import Steer, Vectors
from steer_heal.filter import health
from steer_heal.generate import PrefixStore, Row, decode
from steer_heal.models import LanguageModel, user
from steer_heal.records import SteerFrame, TextHealth, Token

KNOWN_ANSWERS = 256
LEAST_TOKENS = 4
"""A text shorter than this has no health to speak of."""

_LEAST_P = 1e-30

Tokens = tuple[Token, ...]
Key = tuple[tuple[int, ...], str]


class Pairs:
    """Writes pairs on one model. Base answers that were written to their end are not written again."""

    def __init__(self, lm: LanguageModel, vectors: Vectors) -> None:
        self._lm, self._vectors = lm, vectors
        self._bases: OrderedDict[Key, Tokens] = OrderedDict()
        self._prefixes = PrefixStore()

    def steps(self, request: SteerRequest, ticket: Ticket[SteerFrame], asked: float) -> Iterator[SteerFrame]:
        """A frame for every token, the last one with `done`. `asked`: when, by `time.perf_counter`."""
        prompt = encode(self._lm, request.prompt)
        if not self._vectors.ready(request.trait, request.band, request.method):
            title = data.trait(request.trait).title
            yield SteerFrame(
                (), (), False, False, message=f"Measuring the vector of {title} and its c*, once ..."
            )
        steer = self._vectors.steer(request.trait, request.band, request.method)
        key = (prompt, request.sample.model_dump_json())
        base = self._bases.get(key)
        frame = self._frame(request, steer, asked)
        written: list[list[Token]] = [[], list(base or ())]
        for step in decode(
            self._lm, self._rows(request, steer, prompt, base), steer.vector.steers, request.sample,
            stop=ticket.over, store=self._prefixes,
        ):  # fmt: skip
            for row, token in step:
                written[row].append(token)
            if base is None and self._ended(written[1], request):
                base = self._keep(key, tuple(written[1]))
            frame = self._grown(frame, written, base is not None, asked)
            yield frame
        over = "Stopped." if ticket.stopped and not ticket.superseded else frame.message
        yield replace(frame, done=True, superseded=ticket.superseded, message=over)

    def _rows(
        self, request: SteerRequest, steer: Steer, prompt: tuple[int, ...], base: Tokens | None
    ) -> list[Row]:
        steered = Row(prompt, steer.coefficients_KL(request.alpha)[0], shadow=True, alpha=request.alpha)
        return [steered] if base is not None else [steered, Row(prompt)]

    def _ended(self, tokens: list[Token], request: SteerRequest) -> bool:
        full = len(tokens) >= request.sample.max_new_tokens
        return full or (bool(tokens) and tokens[-1].id in self._lm.eos_ids)

    def _keep(self, key: Key, tokens: Tokens) -> Tokens:
        self._bases[key] = tokens
        while len(self._bases) > KNOWN_ANSWERS:
            self._bases.popitem(last=False)
        return tokens

    def _frame(self, request: SteerRequest, steer: Steer, asked: float) -> SteerFrame:
        return SteerFrame(
            (), (), False, False, seconds=time.perf_counter() - asked, dose_nats=steer.nats(request.alpha),
            dose_fraction=steer.fraction(request.alpha), c_star=steer.calibration.c_star,
            message=steer.calibration.message,
        )  # fmt: skip

    def _grown(
        self, frame: SteerFrame, written: list[list[Token]], base_done: bool, asked: float
    ) -> SteerFrame:
        return replace(
            frame, base=tuple(written[1]), steered=tuple(written[0]), base_done=base_done,
            seconds=time.perf_counter() - asked, health=_health(written[0], written[1]),
        )  # fmt: skip


def encode(lm: LanguageModel, prompt: str) -> tuple[int, ...]:
    """The prompt as a user's turn. Raises: `SettingsError` when it is too long."""
    ids = tuple(lm.encode_chat([user(prompt)]))
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SettingsError(f"The prompt has {len(ids)} tokens: shorten it to {MAX_PROMPT_TOKENS} or fewer.")
    return ids


def _health(steered: list[Token], base: list[Token]) -> TextHealth | None:
    """Health of the steered text so far; the base's own text so far gives the unit of perplexity."""
    if len(steered) < LEAST_TOKENS or len(base) < LEAST_TOKENS:
        return None
    own = math.exp(min(-fmean(math.log(max(token.p, _LEAST_P)) for token in base), 100.0))
    logp = [math.log(max(token.p_base, _LEAST_P)) for token in steered if token.p_base is not None]
    kl = [token.kl for token in steered if token.kl is not None]
    return health("".join(token.text for token in steered), logp, own, kl=kl)
