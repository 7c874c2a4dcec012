"""Base and steered answers, written together, also for several people at once, and told token by token."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

from steer_heal import data
from steer_heal.config import SettingsError, SteerRequest
from steer_heal.engine.pair import Asked, Moment, Pair, Tokens, encode
from steer_heal.engine.slices import Pause, sliced
from steer_heal.engine.tickets import Ticket
from steer_heal.engine.vectors import Steer, Vectors
from steer_heal.generate import PrefixStore, decode
from steer_heal.models import LanguageModel, rows_that_fit
from steer_heal.records import Token

LOG = logging.getLogger(__name__)

KNOWN_ANSWERS = 256

TOGETHER = 64
"""Pairs that are written in one batch at most; fewer where memory is short."""

_CHARS_A_TOKEN = 3
_TEMPLATE_TOKENS = 64

Key = tuple[tuple[int, ...], str]


class Pairs:
    """Writes pairs on one model, those of one vector in one batch.

    Base answers that were written to their end are not written again.
    """

    def __init__(self, lm: LanguageModel, vectors: Vectors) -> None:
        self._lm, self._vectors = lm, vectors
        self._bases: OrderedDict[Key, Tokens] = OrderedDict()
        self._prefixes = PrefixStore()
        self._measuring: set[Hashable] = set()

    def key(self, request: Asked) -> Hashable:
        """The vector; also the band, where that has to be measured first."""
        asked = request.request
        method = self._vectors.method(asked.method)
        if self._vectors.ready(asked.trait, asked.band, method):
            return asked.trait, method
        return asked.trait, method, asked.band

    def room(self, requests: Sequence[Asked]) -> int:
        """How many of these fit in memory together."""
        n_tokens = _TEMPLATE_TOKENS + max(
            len(one.request.prompt) // _CHARS_A_TOKEN + one.request.sample.max_new_tokens for one in requests
        )
        return rows_that_fit(self._lm, n_tokens, TOGETHER)

    def steps(self, tickets: list[Ticket[Moment]]) -> Iterator[None]:
        """A `Moment` for every token of every ticket, the last one with `done`."""
        tickets = [one for one in tickets if not self._ended(one, None)]
        if not tickets:
            return
        yield from self._measured(tickets, tickets[0].request.request)
        made = {ticket: pair for ticket in tickets if (pair := self._pair(ticket)) is not None}
        try:
            yield from self._write(made)
        except Exception:
            if len(made) == 1:
                raise
            LOG.exception("%d answers cannot be written together: each is now written alone", len(made))
            yield from self._apart({ticket: pair for ticket, pair in made.items() if not ticket.ended})

    def _measured(self, tickets: list[Ticket[Moment]], request: SteerRequest) -> Iterator[None]:
        """Until the vector and its c* are known, in slices; by one of those who need them at a time."""
        of = (request.trait, request.band, self._vectors.method(request.method))
        if self._vectors.ready(*of):
            return
        title = data.trait(request.trait).title
        for ticket in tickets:
            ticket.tell(Moment(None, message=f"Measuring the vector of {title} and its c*, once ..."))
        yield
        while of in self._measuring:
            yield

        def measure(pause: Pause) -> Iterator[Steer]:
            yield self._vectors.steer(*of, pause=pause)

        self._measuring.add(of)
        try:
            for _ in sliced(measure):
                yield
        finally:
            self._measuring.discard(of)

    def _pair(self, ticket: Ticket[Moment]) -> Pair | None:
        """What is written for the ticket; none, and the ticket ended, where it cannot be."""
        request = ticket.request.request
        try:
            prompt = encode(self._lm, request.prompt)
            steer = self._vectors.steer(request.trait, request.band, request.method)
        except SettingsError as error:
            ticket.end(error)
            return None
        return Pair(ticket.request, prompt, steer, self._bases.get(_key(prompt, request)))

    def _write(self, made: dict[Ticket[Moment], Pair]) -> Iterator[None]:
        """All pairs in one batch, a token of each a step."""
        rows, texts, tickets = [], [], []
        for ticket, pair in made.items():
            for text, row in pair.rows():
                rows.append(row)
                texts.append(text)
                tickets.append(ticket)
        if not rows:
            return
        first = tickets[0].request.request
        vector = made[tickets[0]].steer.vector.steers
        for step in decode(
            self._lm, rows, vector, first.sample, over=lambda row: tickets[row].over(), store=self._prefixes
        ):
            for row, token in step:
                texts[row].append(token)
            for ticket, pair in made.items():
                if not ticket.ended and not self._ended(ticket, pair):
                    self._tell(ticket, pair)
            yield
            for ticket, pair in made.items():
                self._ended(ticket, pair)
            if all(ticket.ended for ticket in made):
                return

    def _apart(self, made: dict[Ticket[Moment], Pair]) -> Iterator[None]:
        """Each pair by itself, from its beginning: an error then ends only the one whose error it is."""
        for ticket, pair in made.items():
            pair.start()
            try:
                yield from self._write({ticket: pair})
            except Exception as error:  # noqa: BLE001 - raised to the ticket's reader
                ticket.end(error)

    def _tell(self, ticket: Ticket[Moment], pair: Pair) -> None:
        """How far it is; the last time when both answers are whole."""
        request = pair.asked.request
        base_done = self._whole(pair.base, request)
        if base_done and pair.known is None:
            pair.known = self._keep(_key(pair.prompt, request), tuple(pair.base))
        done = base_done and self._whole(pair.steered, request)
        at = (len(pair.steered), len(pair.base), base_done)
        seconds = time.perf_counter() - pair.asked.at
        ticket.tell(Moment(pair, *at, seconds=seconds))
        if done:
            ticket.tell(Moment(pair, *at, done=True, seconds=seconds))
            ticket.end()

    def _ended(self, ticket: Ticket[Moment], pair: Pair | None) -> bool:
        """Whether the ticket has ended; one that is over is told so now."""
        if ticket.over() and not ticket.ended:
            n_steered, n_base = (0, 0) if pair is None else (len(pair.steered), len(pair.base))
            base_done = pair is not None and self._whole(pair.base, pair.asked.request)
            ticket.tell(
                Moment(
                    pair, n_steered, n_base, base_done, done=True, superseded=ticket.superseded,
                    seconds=time.perf_counter() - ticket.request.at,
                    message="" if ticket.superseded else "Stopped.",
                )
            )  # fmt: skip
            ticket.end()
        return ticket.ended

    def _whole(self, tokens: Sequence[Token], request: SteerRequest) -> bool:
        full = len(tokens) >= request.sample.max_new_tokens
        return full or (bool(tokens) and tokens[-1].id in self._lm.eos_ids)

    def _keep(self, key: Key, tokens: Tokens) -> Tokens:
        self._bases[key] = tokens
        while len(self._bases) > KNOWN_ANSWERS:
            self._bases.popitem(last=False)
        return tokens


def _key(prompt: tuple[int, ...], request: SteerRequest) -> Key:
    return prompt, request.sample.model_dump_json()
