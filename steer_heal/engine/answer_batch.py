"""The answers of pairs and of conversations, those of several people in one batch, told token by token."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import accumulate, zip_longest
from typing import Any

import torch
from torch import Tensor

from steer_heal import forward
from steer_heal.config import (
    SampleSettings,
    SettingsError,
    SteerRequest,
    TalkRequest,
    build,
    first_line,
    one_sentence,
)
from steer_heal.engine.answer import About, Answer, Tokens, base_logp, encode
from steer_heal.engine.healed import MODEL, HealedRounds, Place
from steer_heal.engine.preemptible import Pause, preemptible, while_wanted
from steer_heal.engine.requests import Request
from steer_heal.engine.talk import Talked
from steer_heal.engine.vectors import Of, Vectors
from steer_heal.evaluate.relevance import relevances
from steer_heal.generate import PrefixStore, Row, complete, decode
from steer_heal.models import LanguageModel, rows_that_fit
from steer_heal.records import Stopped, Token
from steer_heal.vectors.steering import Operator

LOG = logging.getLogger(__name__)

KNOWN_ANSWERS = 256

TOGETHER = 64
"""Answers that are written in one batch at most; fewer where memory is short."""

_CHARS_A_TOKEN = 3
_TEMPLATE_TOKENS = 64

Key = tuple[tuple[int, ...], str]
Asked = SteerRequest | TalkRequest
Group = dict[Request[Any], Answer | Talked]
Part = tuple[Request[Any], list[Token], Row]
"""Whose row it is, where its tokens go, and what it asks."""
Parts = dict[Place, list[Part]]


class Answers:
    """Writes answers on one model, those of one vector in one batch, and healed rounds' in one each.

    A round's adapters are on the model while its rows begin; where the forward pass calls the model itself,
    until they are written. Whoever else is answered meanwhile gets the base. Base answers that were written
    to their end are not written again, as long as nobody touches the weights.
    """

    def __init__(self, lm: LanguageModel, vectors: Vectors, healed: HealedRounds) -> None:
        self._lm, self._vectors, self._healed = lm, vectors, healed
        self._forget()
        self._judging: dict[Request[Any], Iterator[bool | None]] = {}
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
        asked = build(SteerRequest, prompt="How are you?", sample=sample)
        with one_sentence(lambda error: f"{self._lm.name} cannot write an answer: {first_line(error)}."):
            row = Row(encode(self._lm, asked.prompt), shadow=True)
            complete(self._lm, [row], torch.zeros(self._lm.n_layers, self._lm.width), sample)
            self.room([asked])

    def key(self, asked: Asked) -> Hashable:
        """The vectors; also the band, where something has to be measured first."""
        steering = _steering(asked)
        if steering is None:
            return ()
        of = self._vectors.needed(steering)
        terms = self._vectors.mix(steering.mix).terms if steering.mix else ()
        vectors = (*(term.vector for term in terms), *(self._vectors.method(one[2], one[0]) for one in of))
        named = (steering.trait, *(one[0] for one in of), *vectors)
        return named if all(self._vectors.ready(*one) for one in of) else (*named, steering.band)

    def room(self, asked: Sequence[Asked]) -> int:
        """How many of these fit in memory together."""
        n_tokens = _TEMPLATE_TOKENS + max(
            _n_chars(one) // _CHARS_A_TOKEN + one.sample.max_new_tokens for one in asked
        )
        rows = rows_that_fit(self._lm, n_tokens, TOGETHER)
        texts = [1 if isinstance(one, SteerRequest) else one.n * len(one.voices) for one in asked]
        return max(1, sum(total <= rows for total in accumulate(texts)))

    def steps(self, requests: list[Request[Any]]) -> Iterator[None]:
        """A `Moment` for every token of every request, the last one with `done`."""
        if self._lm.state != self._state:
            self._forget()
        group = {request: answer for request in requests if (answer := self._answer(request)) is not None}
        group = {request: answer for request, answer in group.items() if not self._ended(request, answer)}
        try:
            yield from self._write(group)
        except Exception:
            if len(group) == 1:
                raise
            LOG.exception("%d answers cannot be written together: each is now written alone", len(group))
            yield from self._apart(
                {request: answer for request, answer in group.items() if not request.ended}
            )
        finally:
            for request in requests:
                self._judging.pop(request, None)

    def close(self) -> None:
        """Ends what is being measured; who still needs it begins anew."""
        self._measuring.clear()

    def _answer(self, request: Request[Any]) -> Answer | Talked | None:
        """What is written for the request; none, and the request ended, where it cannot be."""
        asked: Asked = request.asked
        try:
            if isinstance(asked, TalkRequest):
                return Talked(self._lm, self._healed, asked, request.since)
            prompt = encode(self._lm, asked.prompt)
        except SettingsError as error:
            request.end(error)
            return None
        return Answer(asked, request.since, prompt, self._bases.get(_key(prompt, asked)))

    def _needed_by(self, group: Group) -> list[Of]:
        """What has to be measured for all of them."""
        steering = [one for answer in group.values() if (one := _steering(answer.asked)) is not None]
        return list(dict.fromkeys(of for one in steering for of in self._vectors.needed(one)))

    def _write(self, group: Group) -> Iterator[None]:
        """All answers together, a token of each a step. Where their vector has yet to be measured, those that
        are not steered begin alone, and go on beside the steered ones."""
        of, plain = self._needed_by(group), _parts(group, steered=False)
        ready, begun = all(self._vectors.ready(*one) for one in of), iter(())
        if not ready:
            begun = self._decoded(plain, torch.zeros(self._lm.n_layers, self._lm.width), group)
            for one in of:
                yield from self._measured(one, group, begun)
        group = {request: answer for request, answer in group.items() if not request.ended}
        if not group:
            return
        steers: Tensor | Operator = torch.zeros(self._lm.n_layers, self._lm.width)
        for answer in group.values():
            if (steering := _steering(answer.asked)) is not None:
                answer.steered_by = self._vectors.of(steering)
                answer.since = time.monotonic()  # what was measured until now is no time of writing
                steers = answer.steered_by.steers
        self._probe(group)
        parts = _parts(group, steered=True)
        if ready:
            for place, some in plain.items():
                parts.setdefault(place, []).extend(some)
        for _ in zip_longest(self._decoded(parts, steers, group), begun):
            yield from self._told(group)
            if all(request.ended for request in group):
                return
        while not all(request.ended for request in group):
            yield from self._told(group)

    def _probe(self, group: Group) -> None:
        """Gives those who ask what their tokens carry what sees it, and tells it of base's known answers."""
        pairs = [answer for answer in group.values() if isinstance(answer, Answer)]
        asking = [answer for answer in pairs if answer.asked.carried]
        steered = [answer.steered_by for answer in asking if answer.steered_by is not None]
        layers = sorted({layer for one in steered for layer in one.layers})
        if asking:
            probe = self._vectors.probe(asking[0].asked.trait, asking[0].asked.method, layers)
            for answer in asking:
                answer.probe = probe
                if answer.known is not None:
                    self._carry(answer)

    def _carry(self, answer: Answer) -> None:
        """What base's tokens carry, where more than the last, which nobody reads, were not told it."""
        if answer.probe is not None and sum(token.carries is None for token in answer.base) > 1:
            ids = [token.id for token in answer.base]
            seen_NK = answer.probe.of_text(self._lm, answer.prompt, ids)
            answer.base = [
                replace(token, carries=answer.carries(seen_K))
                for token, seen_K in zip(answer.base, seen_NK, strict=True)
            ]

    def _decoded(self, parts: Parts, steers: Tensor | Operator, group: Group) -> Iterator[None]:
        """Writes the rows of each set of weights together, a token of every row a step."""
        batches = [self._batch(place, some, steers, group) for place, some in parts.items()]
        for _ in zip_longest(*batches):
            yield

    def _batch(
        self, place: Place, parts: Sequence[Part], steers: Tensor | Operator, group: Group
    ) -> Iterator[None]:
        """Writes rows of one set of weights, for as long as their requests are not over."""
        requests, texts, rows = zip(*parts, strict=True)
        asking = {
            request: answer
            for request in requests
            if isinstance(answer := group[request], Answer) and answer.probe
        }

        def carried(row: int, seen_K: list[float]) -> None:
            if (answer := asking.get(requests[row])) is not None:
                texts[row][-1] = replace(texts[row][-1], carries=answer.carries(seen_K))

        steps = decode(
            self._lm, rows, steers, rows[0].sample or SampleSettings(),
            over=lambda row: requests[row].over(), store=self._prefixes if place == MODEL else None,
            probe=next((answer.probe for answer in asking.values()), None), carried=carried,
        )  # fmt: skip

        def advance() -> bool:
            step = next(steps, None)
            for row, token in step or ():
                texts[row].append(token)
            return step is not None

        with nullcontext() if place == MODEL else self._healed.on(*place):
            more = advance()
            while more and place != MODEL and not forward.holds_on(self._lm, steers):
                more = advance()
        while more:
            yield
            more = advance()

    def _told(self, group: Group, message: str = "") -> Iterator[None]:
        """Every request is told how far it is, and those that are over after the step that they are."""
        for request, answer in group.items():
            if not request.ended and not self._ended(request, answer):
                self._tell(request, answer, message)
        yield
        for request, answer in group.items():
            self._ended(request, answer)

    def _measured(self, of: Of, group: Group, begun: Iterator[None]) -> Iterator[None]:
        """Until the vector and its c* are known, in slices, and `begun` for as long as they take: it goes
        first, so that there is something to read at once."""
        self._needed[of] += 1
        try:
            said, more, due = self._advance(of, group), True, 0.0
            while not self._vectors.ready(*of):
                yield from self._told(group, said)
                if all(request.ended for request in group):
                    return
                start = time.perf_counter()
                if more and due >= 0.0:
                    more, part = next(begun, False) is None, -1
                else:
                    said, part = self._advance(of, group), 1
                due += part * (time.perf_counter() - start)
        finally:
            self._needed[of] -= 1

    def _advance(self, of: Of, group: Group) -> str:
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
            except Exception as error:  # noqa: BLE001 - raised to the requests' readers
                del self._measuring[what]
                for request in group:
                    request.end(error)
                break
        return ""

    def _apart(self, group: Group) -> Iterator[None]:
        """Each answer by itself, from its beginning: an error then ends only the one whose error it is."""
        for request, answer in group.items():
            answer.start()
            self._judging.pop(request, None)
            try:
                yield from self._write({request: answer})
            except Exception as error:  # noqa: BLE001 - raised to the request's reader
                request.end(error)

    def _tell(self, request: Request[Any], answer: Answer | Talked, message: str) -> None:
        """How far it is; the last time when all is written and judged."""
        if isinstance(answer, Talked):
            self._tell_talked(request, answer, message)
            return
        base_done = self._whole(answer.base, answer.asked)
        if base_done and answer.known is None:
            answer.known = tuple(replace(token, carries=None) for token in answer.base)
            self._bases[_key(answer.prompt, answer.asked)] = answer.known
            while len(self._bases) > KNOWN_ANSWERS:
                self._abouts.pop(self._bases.popitem(last=False)[0], None)
        request.tell(answer.moment(base_done=base_done, message=message))
        if base_done and self._whole(answer.steered, answer.asked):
            self._carry(answer)
            answer.about = self._about(answer)
            request.tell(answer.moment(base_done=True, done=True))
            request.end()

    def _tell_talked(self, request: Request[Any], answer: Talked, message: str) -> None:
        """The same, a pass of the judging at a time."""
        if not answer.is_whole:
            request.tell(answer.moment(message=message))
            return
        if request not in self._judging:
            request.tell(answer.moment())
            self._judging[request] = while_wanted(request, lambda stop: iter([answer.judge(stop)]))
        with suppress(Stopped):
            if next(self._judging[request]):
                request.tell(answer.moment(done=True))
                request.end()

    def _about(self, answer: Answer) -> About:
        """Relevance of both whole answers; base's is remembered with it."""
        key, wanted = _key(answer.prompt, answer.asked), [tuple(answer.steered)]
        known = self._abouts.get(key)
        wanted += [] if key in self._abouts else [tuple(answer.base)]
        found = relevances(
            self._lm, [answer.prompt] * len(wanted), [[token.id for token in one] for one in wanted],
            list(map(base_logp, wanted)),
        )  # fmt: skip
        if len(found) == 2 and key in self._bases:
            self._abouts[key] = found[1]
        return found[0], found[1] if len(found) == 2 else known

    def _ended(self, request: Request[Any], answer: Answer | Talked) -> bool:
        """Whether the request has ended; one that is over is told so now."""
        if request.over() and not request.ended:
            last: dict[str, Any] = {"done": True, "superseded": request.superseded}
            last["message"] = "" if request.superseded else "Stopped."
            if isinstance(answer, Answer):
                last["base_done"] = self._whole(answer.base, answer.asked)
            request.tell(answer.moment(**last))
            request.end()
        return request.ended

    def _whole(self, tokens: Sequence[Token], request: SteerRequest) -> bool:
        full = len(tokens) >= request.sample.max_new_tokens
        return full or (bool(tokens) and tokens[-1].id in self._lm.eos_ids)


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

    for item in preemptible(work):
        if item is None:
            yield said


def _steering(asked: Asked) -> SteerRequest | None:
    """What steers an answer; none where nothing does."""
    if isinstance(asked, SteerRequest):
        return asked
    return asked.steering() if asked.is_steered else None


def _n_chars(asked: Asked) -> int:
    """Of the longest prompt."""
    if isinstance(asked, SteerRequest):
        return len(asked.prompt)
    return max(sum(len(turn.content) for turn in voice.messages) for voice in asked.voices)


def _parts(group: Group, *, steered: bool) -> Parts:
    """The rows of all answers that are steered, or of those that are not, by whose weights write them."""
    parts: Parts = {}
    for request, answer in group.items():
        for tokens, row, place in answer.writings(steered=steered):
            parts.setdefault(place, []).append((request, tokens, row))
    return parts


def _key(prompt: tuple[int, ...], request: SteerRequest) -> Key:
    return prompt, request.sample.model_dump_json()
