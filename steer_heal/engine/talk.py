"""The next answers of a conversation as they grow: base, steered and healed voices side by side."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from steer_heal.config import MAX_PROMPT_TOKENS, SettingsError, TalkRequest, Voice
from steer_heal.dose.mixed import Steered
from steer_heal.engine.answer import Writing
from steer_heal.engine.healed import HealedRounds
from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.relevance import relevances
from steer_heal.evaluate.text_health import health, perplexity
from steer_heal.generate import Row
from steer_heal.models import LanguageModel
from steer_heal.records import Spoken, TalkFrame, TextHealth, Token


@dataclass(eq=False)
class _Text:
    """One answer: who gives it, the prompt that it follows, its number among the voice's, and what is written
    of it."""

    voice: Voice
    prompt: tuple[int, ...]
    number: int
    tokens: list[Token] = field(default_factory=list)
    health: TextHealth | None = None

    @property
    def is_base(self) -> bool:
        return not self.voice.run and not self.voice.alpha


class Talked:
    """The answers to one request as far as they are written. `steered_by`: none until it was measured."""

    def __init__(self, lm: LanguageModel, healed: HealedRounds, asked: TalkRequest, since: float) -> None:
        """Errors: `SettingsError` for a round that is not there and for a conversation that is too long."""
        self._lm, self.asked, self.since = lm, asked, since
        self.steered_by: Steered | None = None
        for voice in asked.voices:
            if voice.run:
                healed.check(voice.run, voice.round)
        prompts = [self._encode(voice) for voice in asked.voices]
        self._texts = [
            _Text(voice, prompt, number)
            for voice, prompt in zip(asked.voices, prompts, strict=True)
            for number in range(asked.n)
        ]

    def _encode(self, voice: Voice) -> tuple[int, ...]:
        ids = tuple(self._lm.encode_chat([turn.model_dump() for turn in voice.messages]))
        more = self.asked.sample.max_new_tokens
        limit = int(min(MAX_PROMPT_TOKENS, self._lm.n_positions - more))
        if len(ids) > limit:
            raise SettingsError(
                f"This conversation has {len(ids)} tokens, and {self._lm.name} is given {limit} at most "
                f"before an answer of {more}: ask for a shorter one, edit an earlier turn, or begin a new "
                "conversation; what was said stays as it is."
            )
        return ids

    def start(self) -> None:
        """As before the first token."""
        for text in self._texts:
            text.tokens = []

    def writings(self, *, steered: bool) -> list[Writing]:
        """The texts that are steered, or those that are not, and what is asked for them."""
        return [
            (text.tokens, self._row(text), (text.voice.run, text.voice.round))
            for text in self._texts
            if bool(text.voice.alpha) == steered
        ]

    def _row(self, text: _Text) -> Row:
        alpha, sample = text.voice.alpha, self.asked.sample
        if not alpha:
            return Row(text.prompt, sample=sample, rng_stream=text.number)
        assert self.steered_by is not None
        coefficients_L, where = self.steered_by.coefficients_RL(alpha)[0], self.asked.steering(alpha).gate
        return Row(text.prompt, coefficients_L, sample=sample, rng_stream=text.number, where=where)

    @property
    def is_whole(self) -> bool:
        """Whether all of them are."""
        return all(self._finish(text.tokens) for text in self._texts)

    def _finish(self, tokens: list[Token]) -> Literal["", "stop", "length"]:
        if tokens and tokens[-1].id in self._lm.eos_ids:
            return "stop"
        return "length" if len(tokens) >= self.asked.sample.max_new_tokens else ""

    def moment(self, **more: Any) -> Callable[[], TalkFrame]:
        """What makes a frame of how far they are now; `more`: what else it says."""
        lengths = [len(text.tokens) for text in self._texts]
        return partial(self._frame, lengths, seconds=time.monotonic() - self.since, **more)

    def _frame(self, lengths: list[int], **more: Any) -> TalkFrame:
        spoken = []
        for text, n in zip(self._texts, lengths, strict=True):
            tokens = text.tokens[:n]
            spoken.append(Spoken(tuple(tokens), text.health, self._finish(tokens)))
        n = self.asked.n
        voices = tuple(tuple(spoken[at : at + n]) for at in range(0, len(spoken), n))
        return TalkFrame(voices, self._together(), n_prompt=len(self._texts[0].prompt), **more)

    def judge(self, stop: Callable[[], bool]) -> bool:
        """Finds each answer's health under base, in units of base's own answer of that number where base is
        among the voices. Raises `Stopped` when `stop()` says so, which is asked between passes."""
        prompts = [text.prompt for text in self._texts]
        ids = [[token.id for token in text.tokens] for text in self._texts]
        logp = text_logp(self._lm, prompts, ids, stop=stop)
        about = relevances(self._lm, prompts, ids, logp, stop=stop)
        own = {text.number: row for row, text in enumerate(self._texts) if text.is_base}
        for row, text in enumerate(self._texts):
            base, said = own.get(text.number), "".join(token.text for token in text.tokens)
            units = (None, None) if base is None else (perplexity(logp[base]), about[base])
            earlier = "\n".join(turn.content for turn in text.voice.messages if turn.role == "assistant")
            text.health = health(
                said, logp[row], units[0], relevance=about[row], own_relevance=units[1], earlier=earlier
            )
        return True

    def _together(self) -> str:
        """Which answers are written together, in words."""
        voices = self.asked.voices
        rounds = {(voice.run, voice.round) for voice in voices if voice.run}
        plain = any(not voice.run for voice in voices)
        parts = ["the model as it came, steered or not, in one batch"] if plain else []
        parts += ["the healed round in a batch of its own"] if len(rounds) == 1 else []
        parts += [f"{len(rounds)} healed rounds in turn, a batch each"] if len(rounds) > 1 else []
        return "; ".join(parts)
