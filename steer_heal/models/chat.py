"""Chat encoding in which control tokens come from the template only: what a person types is data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..config import SettingsError

Message = dict[str, str]
Span = tuple[int, int]


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    """The system text."""
    return {"role": "system", "content": text}


class ChatEncoder:
    """Messages to token ids by the tokenizer's own template.

    The template is rendered with a stand-in for each content. Where a content holds text that would read as a
    control token, it is cut inside that text and the pieces are tokenized apart; all other text is tokenized
    whole, so its ids are those of `apply_chat_template`. Control tokens are the special tokens and the added
    tokens that the template itself writes. Errors: `SettingsError`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.chat_template:
            raise SettingsError(f"{name} has no chat template: choose an instruction-tuned model.")
        self._tokenizer = tokenizer
        self._name = name

    def encode(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids of the rendered turns, the model's turn tag and `prefill`, which is trusted text of ours."""
        return self.encode_all([messages], prefill)[0]

    def encode_all(self, chats: Sequence[Sequence[Message]], prefill: str = "") -> list[list[int]]:
        """`encode` of each chat; what they hold is tokenized in one call."""
        rendered = [self._render(self._fitting(chat)) for chat in chats]
        cuts = [self._cuts(text, spans) for text, spans in rendered]
        pieces = [_split(text, cut) for (text, _), cut in zip(rendered, cuts, strict=True)]
        for some in pieces:
            some[-1] += prefill
        parts = iter(self._tokenize_all([piece for some in pieces for piece in some]))
        made = [[token for part in itertools.islice(parts, len(some)) for token in part] for some in pieces]
        for ids, (text, spans), cut in zip(made, rendered, cuts, strict=True):
            blanked = _blanked(text, spans) + prefill
            if cut and self._control_only(ids) != self._control_only(self._tokenize(blanked)):
                raise SettingsError("The text holds a control token that cannot be read as text: remove it.")
        return made

    def _fitting(self, messages: Sequence[Message]) -> Sequence[Message]:
        return messages if self.has_system_role else _fold_system(messages)

    def interruption(self, nudge: str, *, apart: bool = False) -> str:
        """What follows the model's text when the user breaks in with `nudge`, up to where the model goes on.

        `apart`: the new turns are rendered as a chat of their own, with the BOS that begins one.
        """
        model = {"role": "assistant", "content": "a"}
        if not apart:
            text, spans = self._render([user("q"), model, user(nudge)])
            return text[spans[1][1] :]
        text, spans = self._render([user("q"), model], generation_prompt=False)
        again, places = self._render([user(nudge), model], generation_prompt=False)
        return text[spans[1][1] :] + again[: places[1][0]]

    @cached_property
    def end_of_turn(self) -> int | None:
        """The control token that the template writes after the model's own turn."""
        messages = [user("q"), {"role": "assistant", "content": "a"}]
        text, spans = self._render(messages, generation_prompt=False)
        return next(iter(self._control_only(self._tokenize(text[spans[-1][1] :]))), None)

    def _render(
        self, messages: Sequence[Message], *, generation_prompt: bool = True
    ) -> tuple[str, list[Span]]:
        """The rendered text, and the span of each content in it."""
        joined = "".join(message["content"] for message in messages)
        mark = "CONTENT"
        while mark in joined or mark in str(self._tokenizer.chat_template):
            mark += "X"
        marked = [{**message, "content": f" {mark}{i}Z "} for i, message in enumerate(messages)]
        skeleton = self._apply(marked, generation_prompt)
        parts: list[str] = []
        spans: list[Span] = []
        end = length = 0
        for match in re.finditer(rf"( ?){mark}(\d+)Z( ?)", skeleton):
            content = messages[int(match[2])]["content"]
            content = content if match[1] else content.lstrip()
            content = content if match[3] else content.rstrip()
            before = skeleton[end : match.start()]
            spans.append((length + len(before), length + len(before) + len(content)))
            parts += [before, content]
            length, end = spans[-1][1], match.end()
        return "".join(parts) + skeleton[end:], spans

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            text: Any = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateError as error:
            raise SettingsError(
                f"The chat template of {self._name} refuses these messages: {error}."
            ) from error
        return text

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template takes a system text as such; otherwise it goes into the first user turn."""
        probe = "SYSTEMPROBE"
        try:
            return probe in self._apply([system(probe), user("q")], True)
        except SettingsError:
            return False

    @cached_property
    def _control(self) -> dict[str, int]:
        """Text of every control token, and its id."""
        template = str(self._tokenizer.chat_template)
        return {
            token.content: number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.strip() and token.content in template)
        }

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._control, key=len, reverse=True)
        return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")

    def _cuts(self, text: str, spans: Sequence[Span]) -> list[int]:
        """Where to cut so that no control token's text that touches a content stays whole."""
        found = ((match.start(), match.start() + len(match[1])) for match in self._pattern.finditer(text))
        return [
            start + 1 for start, end in found if any(start < stop and first < end for first, stop in spans)
        ]

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenize_all([text])[0]

    def _tokenize_all(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _control_only(self, ids: Sequence[int]) -> list[int]:
        """The unknown token is left out: it also stands for ordinary text."""
        unknown: Any = self._tokenizer.unk_token_id
        control = set(self._control.values()) - {unknown}
        return [token for token in ids if token in control]


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """System text put before the first user turn's, for a template that knows no system role."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    if len(messages) < 2 or messages[1]["role"] != "user":
        raise SettingsError("A system text needs a user's turn after it.")
    first = user(f"{messages[0]['content']}\n\n{messages[1]['content']}")
    return [first, *messages[2:]]


def _split(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *cuts, len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def _blanked(text: str, spans: Sequence[Span]) -> str:
    """The text with every content replaced by a harmless letter."""
    edges = [0, *itertools.chain.from_iterable(spans), len(text)]
    return "x".join(text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
