"""Base and steered answers, written together, also for several people at once, and told token by token."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from steer_heal.config import SampleSettings, SettingsError, SteerRequest, build, first_line, one_sentence
from steer_heal.engine.answer import About, Asked, Moment, Pair, Tokens, base_logp, encode
from steer_heal.engine.preemptible import Pause, sliced
from steer_heal.engine.requests import Ticket
from steer_heal.engine.vectors import Vectors
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.instrument import relevances
from steer_heal.models import LanguageModel, rows_that_fit
from steer_heal.records import Token
from steer_heal.vectors.steering import Operator

LOG = logging.getLogger(__name__)

KNOWN_ANSWERS = 256

TOGETHER = 64
"""Pairs that are written in one batch at most; fewer where memory is short."""

_CHARS_A_TOKEN = 3
_TEMPLATE_TOKENS = 64

Key = tuple[tuple[int, ...], str]
Of = tuple[str, tuple[float, float], str]
"""Trait, band and method: what a vector and its c* are of."""
Made = dict[Ticket[Moment], Pair]
Part = tuple[Ticket[Moment], list[Token], Row]
"""Whose row it is, where its tokens go, and what it asks."""


class Pairs:
    """Writes pairs on one model, those of one vector in one batch.

    Base answers that were written to their end are not written again, as long as nobody touches the weights.
    """

    def __init__(self, lm: LanguageModel, vectors: Vectors) -> None:
        self._lm, self._vectors = lm, vectors
        self._forget()
        self._measuring: dict[Hashable, Iterator[str]] = {}
        self._needed: Counter[Of] = Counter()

    def _forget(self) -> None:
        """Nothing that was read or written is good for other weights."""
        self._state = self._lm.state
        self._bases: OrderedDict[Key, Tokens] = OrderedDict()
        self._abouts: dict[Key, float | None] = {}
        self._prefixes = PrefixStore()

    def try_out(self) -> None:
        """Writes two tokens and their shadows. Errors: `SettingsError` where the model cannot."""
        sample = build(SampleSettings, max_new_tokens=2)
        asked = Asked(build(SteerRequest, prompt="How are you?", sample=sample))
        with one_sentence(lambda error: f"{self._lm.name} cannot write an answer: {first_line(error)}."):
            row = Row(encode(self._lm, asked.request.prompt), shadow=True)
            complete(self._lm, [row], torch.zeros(self._lm.n_layers, self._lm.width), sample)
            self.room([asked])

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
        if self._lm.state != self._state:
            self._forget()
        made = {ticket: pair for ticket in tickets if (pair := self._pair(ticket)) is not None}
        try:
            yield from self._write(made)
        except Exception:
            if len(made) == 1:
                raise
            LOG.exception("%d answers cannot be written together: each is now written alone", len(made))
            yield from self._apart({ticket: pair for ticket, pair in made.items() if not ticket.ended})

    def close(self) -> None:
        """Ends what is being measured; who still needs it begins anew."""
        self._measuring.clear()

    def _pair(self, ticket: Ticket[Moment]) -> Pair | None:
        """What is written for the ticket; none, and the ticket ended, where it cannot be."""
        request = ticket.request.request
        try:
            prompt = encode(self._lm, request.prompt)
        except SettingsError as error:
            ticket.end(error)
            return None
        return Pair(ticket.request, prompt, self._bases.get(_key(prompt, request)))

    def _write(self, made: Made) -> Iterator[None]:
        """All pairs in one batch, a token of each a step. Where their vector has yet to be measured, base's
        answers begin alone, and go on beside the steered ones."""
        of = [_of(pair) for pair in made.values()]
        bases = [(ticket, pair.base, pair.base_row()) for ticket, pair in made.items() if pair.known is None]
        ready, begun = all(self._vectors.ready(*one) for one in of), iter(())
        if not ready:
            begun = self._decoded(bases, torch.zeros(self._lm.n_layers, self._lm.width))
            yield from self._measured(of[0], made, begun)
        made = {ticket: pair for ticket, pair in made.items() if not ticket.ended}
        if not made:
            return
        for pair in made.values():
            pair.steer = self._vectors.steer(*_of(pair))
        steered = [(ticket, pair.steered, pair.steered_row()) for ticket, pair in made.items()]
        vector = self._vectors.steer(*of[0]).vector.steers
        writing = self._decoded([*steered, *bases] if ready else steered, vector)
        for _ in zip_longest(writing, begun):
            yield from self._told(made)
            if all(ticket.ended for ticket in made):
                return

    def _decoded(self, parts: Sequence[Part], vector: Tensor | Operator) -> Iterator[None]:
        """Writes rows together, a token of each a step, for as long as their tickets are not over."""
        tickets, texts, rows = zip(*parts, strict=True) if parts else ((), (), ())
        sample = rows[0].sample if rows else SampleSettings()
        for step in decode(
            self._lm, rows, vector, sample, over=lambda row: tickets[row].over(), store=self._prefixes
        ):
            for row, token in step:
                texts[row].append(token)
            yield

    def _told(self, made: Made, message: str = "") -> Iterator[None]:
        """Every ticket is told how far it is, and those that are over after the step that they are."""
        for ticket, pair in made.items():
            if not ticket.ended and not self._ended(ticket, pair):
                self._tell(ticket, pair, message)
        yield
        for ticket, pair in made.items():
            self._ended(ticket, pair)

    def _measured(self, of: Of, made: Made, begun: Iterator[None]) -> Iterator[None]:
        """Until the vector and its c* are known, in slices, and `begun` for as long as they take: it goes
        first, so that there is something to read at once."""
        self._needed[of] += 1
        try:
            said, more, due = self._advance(of, made), True, 0.0
            while not self._vectors.ready(*of):
                yield from self._told(made, said)
                if all(ticket.ended for ticket in made):
                    return
                start = time.perf_counter()
                if more and due >= 0.0:
                    more, part = next(begun, False) is None, -1
                else:
                    said, part = self._advance(of, made), 1
                due += part * (time.perf_counter() - start)
        finally:
            self._needed[of] -= 1

    def _advance(self, of: Of, made: Made) -> str:
        """Takes what `of` lacks as far as the next pass of the model, and says in words what that measures.
        Where it cannot be had, that ends all who wait for it.

        A measurement is nobody's own: one whose request was replaced is gone on with by who needs it next,
        and forgotten where another begins before that.
        """
        trait, band, method = of
        while not self._vectors.ready(*of):
            what = of if self._vectors.extracted(trait, method) else (trait, method)
            if what not in self._measuring:
                needed = [key for one in +self._needed for key in (one, (one[0], one[2]))]
                self._measuring = {key: self._measuring[key] for key in self._measuring if key in needed}
                self._measuring[what] = _measurement(
                    self._vectors, trait, band if what == of else None, method
                )
            try:
                return next(self._measuring[what])
            except StopIteration:
                del self._measuring[what]
            except Exception as error:  # noqa: BLE001 - raised to the tickets' readers
                del self._measuring[what]
                for ticket in made:
                    ticket.end(error)
                break
        return ""

    def _apart(self, made: Made) -> Iterator[None]:
        """Each pair by itself, from its beginning: an error then ends only the one whose error it is."""
        for ticket, pair in made.items():
            pair.start()
            try:
                yield from self._write({ticket: pair})
            except Exception as error:  # noqa: BLE001 - raised to the ticket's reader
                ticket.end(error)

    def _tell(self, ticket: Ticket[Moment], pair: Pair, message: str) -> None:
        """How far it is; the last time when both answers are whole."""
        request = pair.asked.request
        base_done = self._whole(pair.base, request)
        if base_done and pair.known is None:
            pair.known = self._keep(_key(pair.prompt, request), tuple(pair.base))
        done = base_done and self._whole(pair.steered, request)
        at = (len(pair.steered), len(pair.base), base_done)
        seconds = time.perf_counter() - pair.asked.at
        ticket.tell(Moment(pair, *at, seconds=seconds, message=message))
        if done:
            pair.about = self._about(pair)
            ticket.tell(Moment(pair, *at, done=True, seconds=seconds))
            ticket.end()

    def _about(self, pair: Pair) -> About:
        """Relevance of both whole answers; base's is remembered with it."""
        key, wanted = _key(pair.prompt, pair.asked.request), [tuple(pair.steered)]
        known = self._abouts.get(key)
        wanted += [] if key in self._abouts else [tuple(pair.base)]
        found = relevances(
            self._lm, [pair.prompt] * len(wanted), [[token.id for token in one] for one in wanted],
            list(map(base_logp, wanted)),
        )  # fmt: skip
        if len(found) == 2 and key in self._bases:
            self._abouts[key] = found[1]
        return found[0], found[1] if len(found) == 2 else known

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
            self._abouts.pop(self._bases.popitem(last=False)[0], None)
        return tokens


def _of(pair: Pair) -> Of:
    request = pair.asked.request
    return request.trait, request.band, request.method


def _measurement(
    vectors: Vectors, trait: str, band: tuple[float, float] | None, method: str
) -> Iterator[str]:
    """The trait's vector, and with a band its c*, in slices: before each pass of the model what it measures.
    Holds on to nothing but `vectors`, so that it ends once nobody holds it."""
    said = ""

    def work(pause: Pause) -> Iterator[object]:
        def say(text: str) -> None:
            nonlocal said
            said = text
            pause()

        yield (
            vectors.vector(trait, method, say=say)
            if band is None
            else vectors.steer(trait, band, method, say=say)
        )

    for item in sliced(work):
        if item is None:
            yield said


def _key(prompt: tuple[int, ...], request: SteerRequest) -> Key:
    return prompt, request.sample.model_dump_json()
