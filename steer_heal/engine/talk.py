"""The next answers of a conversation: base and steered ones in one batch, each healed round in its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import torch
from torch import Tensor

from steer_heal import forward
from steer_heal.config import MAX_PROMPT_TOKENS, SettingsError, TalkRequest, Voice
from steer_heal.dose.mixed import Steered
from steer_heal.engine.healed import HealedRounds
from steer_heal.engine.sweeps import ending
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import relevances
from steer_heal.evaluate.text_health import health, perplexity
from steer_heal.generate import Row, decode
from steer_heal.models import LanguageModel
from steer_heal.records import Spoken, Stopped, TalkFrame, Token
from steer_heal.vectors.steering import Operator

Ids = tuple[int, ...]
Place = tuple[str, int]
"""A run and its round; the model as it came is `("", 0)`."""


@dataclass(eq=False)
class _Text:
    """One answer: the prompt that it follows, and what is written of it."""

    voice: Voice
    prompt: Ids
    sample: int
    tokens: list[Token] = field(default_factory=list)

    @property
    def is_base(self) -> bool:
        return not self.voice.run and not self.voice.alpha


class Talk:
    """Answers conversations on one model, the healed rounds among them."""

    def __init__(self, lm: LanguageModel, vectors: Vectors, healed: HealedRounds) -> None:
        self._lm, self._vectors, self._healed = lm, vectors, healed

    def answer(self, asked: TalkRequest, stop: Callable[[], bool]) -> Iterator[TalkFrame]:
        """A frame for every token of every answer; the last one is `done` and has their health. `stop` is
        asked between two tokens, when no adapter is on the model. Errors: `SettingsError`."""
        since = time.monotonic()
        for voice in asked.voices:
            if voice.run:
                self._healed.check(voice.run, voice.round)
        prompts = [self._encode(voice, asked) for voice in asked.voices]
        groups: dict[Place, list[_Text]] = {}
        texts = [
            [_Text(voice, prompt, sample) for sample in range(asked.n)]
            for voice, prompt in zip(asked.voices, prompts, strict=True)
        ]
        for column in texts:
            groups.setdefault((column[0].voice.run, column[0].voice.round), []).extend(column)
        steered = any(voice.alpha for voice in asked.voices)
        steered_by = self._vectors.of(asked.steering(1.0), say=ending(stop)) if steered else None
        together = _in_words(list(groups))

        def frame() -> TalkFrame:
            spoken = tuple(tuple(Spoken(tuple(one.tokens)) for one in column) for column in texts)
            return TalkFrame(spoken, together, seconds=time.monotonic() - since)

        for _ in zip_longest(*(self._write(asked, *group, steered_by) for group in groups.items())):
            yield frame()
            if stop():
                yield replace(frame(), done=True, message="Stopped.")
                return
        over = False

        def ends() -> bool:
            nonlocal over
            over = stop()
            return over

        try:
            yield self._judged([one for column in texts for one in column], frame(), ends)
        except Stopped:
            if not over:  # the work itself is being put away, and nobody reads on
                raise
            yield replace(frame(), done=True, message="Stopped.")

    def _encode(self, voice: Voice, asked: TalkRequest) -> Ids:
        """The conversation as ids. Errors: `SettingsError` where it and the answer are too long."""
        ids = tuple(self._lm.encode_chat([turn.model_dump() for turn in voice.messages]))
        more = asked.sample.max_new_tokens
        limit = int(min(MAX_PROMPT_TOKENS, self._lm.n_positions - more))
        if len(ids) > limit:
            raise SettingsError(
                f"This conversation has {len(ids)} tokens, and {self._lm.name} is given {limit} at most "
                f"before an answer of {more}: ask for a shorter one, edit an earlier turn, or begin a new "
                "conversation; what was said stays as it is."
            )
        return ids

    def _write(
        self, asked: TalkRequest, place: Place, texts: list[_Text], steered_by: Steered | None
    ) -> Iterator[None]:
        """Writes the answers of one set of weights, a token of each a step. The round's adapters are on the
        model while its rows begin; where the forward pass calls the model itself, until all are written."""
        steers: Tensor | Operator = torch.zeros(self._lm.n_layers, self._lm.width)
        if steered_by is not None and any(one.voice.alpha for one in texts):
            steers = steered_by.steers
        rows = [self._row(asked, text, steered_by) for text in texts]
        steps = decode(self._lm, rows, steers, asked.sample)

        def take(some: list[tuple[int, Token]]) -> None:
            for row, token in some:
                texts[row].tokens.append(token)

        with self._healed.on(*place) if place[0] else nullcontext():
            take(next(steps))
            if place[0] and not forward.holds_on(self._lm, steers):
                for step in steps:
                    take(step)
        yield
        for step in steps:
            take(step)
            yield

    def _row(self, asked: TalkRequest, text: _Text, steered_by: Steered | None) -> Row:
        alpha = text.voice.alpha
        if not alpha or steered_by is None:
            return Row(text.prompt, rng_stream=text.sample)
        where, coefficients_L = asked.steering(alpha).gate, steered_by.coefficients_RL(alpha)[0]
        return Row(text.prompt, coefficients_L, rng_stream=text.sample, where=where)

    def _judged(self, texts: list[_Text], frame: TalkFrame, stop: Callable[[], bool]) -> TalkFrame:
        """The last frame: each answer's health under base, in units of base's own answer of that number where
        base is among the voices. Raises `Stopped` when `stop()` says so."""
        prompts, ids = [one.prompt for one in texts], [[token.id for token in one.tokens] for one in texts]
        logp = text_logp(self._lm, prompts, ids, stop=stop)
        about = relevances(self._lm, prompts, ids, logp, stop=stop)
        own = {one.sample: row for row, one in enumerate(texts) if one.is_base}
        spoken: list[Spoken] = []
        for row, one in enumerate(texts):
            base, text = own.get(one.sample), "".join(token.text for token in one.tokens)
            units = (None, None) if base is None else (perplexity(logp[base]), about[base])
            found = health(text, logp[row], units[0], relevance=about[row], own_relevance=units[1])
            cut = bool(one.tokens) and one.tokens[-1].id not in self._lm.eos_ids
            spoken.append(Spoken(tuple(one.tokens), found, cut))
        n = len(frame.voices[0])
        columns = tuple(tuple(spoken[at : at + n]) for at in range(0, len(spoken), n))
        return replace(frame, voices=columns, done=True)


def _in_words(groups: Sequence[Place]) -> str:
    """Which answers are written together."""
    plain, healed = any(not run for run, _ in groups), sum(bool(run) for run, _ in groups)
    parts = ["the model as it came, steered or not, in one batch"] if plain else []
    parts += ["the healed round in a batch of its own"] if healed == 1 else []
    parts += [f"{healed} healed rounds in turn, a batch each"] if healed > 1 else []
    return "; ".join(parts)
