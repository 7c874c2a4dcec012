"""Chat encoding in which control tokens come from the template only: what a person types is data."""

import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from steer_heal.config import MAX_PROMPT_CHARS, SettingsError, check_text, first_line, one_sentence, sound
from steer_heal.models.templates import Bounded

chat_template_utils.ImmutableSandboxedEnvironment = Bounded  # whose name is all that it lets one change

Message = dict[str, str]
Span = tuple[int, int]

_SAID = (
    f"Say:\t{string.punctuation} “No”\nÄÖ \U0001f642 0{', and so on' * (MAX_PROMPT_CHARS // 5)}: <b>END</b>"
)
"""What a template may not change: longer than any prompt, with what is easily escaped, folded or cut."""
_READ = "Seven foxes read one letter"
"""What any tokenizer gives back, but for the case of its letters."""


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
    whole, so its ids are those of `apply_chat_template`. Control tokens are the special tokens, the added
    tokens that the template itself writes, and those that the model, with `n_ids` embeddings, has none for;
    it reads `n_positions` tokens at most. A template that takes a content only as a list of parts gets parts.
    Errors: `SettingsError`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        n_ids: float = math.inf,
        n_positions: float = math.inf,
    ) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._n_ids, self._n_positions = n_ids, n_positions
        self.template = _default_template(tokenizer.chat_template, name)

    def check(self) -> None:
        """Errors: `SettingsError` unless a probe chat, encoded and read back, says once what was said, and
        the model has an embedding for every ordinary token."""
        if not self._says([user(_SAID)]):
            self._apply([user(_SAID)], True)
            raise SettingsError(self._unsaid)
        ids = self.encode([user(_READ)])
        read = " ".join(str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)).split())
        if read.casefold().count(_READ.casefold()) != 1:
            raise SettingsError(
                f"The tokenizer of {self._name} turns {_READ!r} into {read[:100]!r}: put the model's own "
                "tokenizer.json and tokenizer_config.json into its folder."
            )
        if len(self._tokenizer) > self._n_ids:
            added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
            known = self._tokenizer.get_vocab().items()
            if strange := [text for text, token in known if token >= self._n_ids and text not in added]:
                raise SettingsError(
                    f"The tokenizer of {self._name} is another model's: {len(strange)} of its tokens have no "
                    f"embedding, {min(strange)!r} among them; put the model's own into its folder."
                )

    def encode(self, messages: Sequence[Message], prefill: str = "") -> list[int]:
        """Ids of the rendered turns, the model's turn tag and `prefill`, which is trusted text of ours."""
        return self.encode_all([messages], prefill)[0]

    def encode_all(
        self, chats: Sequence[Sequence[Message]], prefill: str = "", *, unfinished: bool = False
    ) -> list[list[int]]:
        """`encode` of each chat; what they hold is tokenized in one call. `unfinished`: up to the end of the
        last turn's content, so that the model goes on with that turn."""
        for message in itertools.chain.from_iterable(chats):
            sound(check_text, message["content"])
        rendered = [self._render(chat if self.has_system_role else _fold_system(chat)) for chat in chats]
        if unfinished:
            rendered = [(text[: spans[-1][1]], spans) for text, spans in rendered]
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
            if len(ids) > self._n_positions:
                raise SettingsError(
                    f"{self._name} reads {self._n_positions} tokens at most, and this chat has {len(ids)}: "
                    "shorten the text."
                )
            if ids and max(ids) >= self._n_ids:
                strange = str(self._tokenizer.convert_ids_to_tokens(max(ids)))
                raise SettingsError(
                    f"{self._name} has no embedding for {strange!r}, a token of this chat: leave it out of "
                    "the text, or put the model's own tokenizer and chat template into its folder."
                )
        return made

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
        """The control token that the template writes after the model's own turn, where it can write one."""
        messages = [user("q"), {"role": "assistant", "content": "a"}]
        try:
            text, spans = self._render(messages, generation_prompt=False)
        except SettingsError:
            return None
        return next(iter(self._control_only(self._tokenize(text[spans[-1][1] :]))), None)

    def _render(
        self, messages: Sequence[Message], *, generation_prompt: bool = True
    ) -> tuple[str, list[Span]]:
        """The rendered text, and the span of each content in it."""
        joined = "".join(message["content"] for message in messages)
        mark = "CONTENT"
        while mark in joined or mark in self.template:
            mark += "X"
        marked = [{**message, "content": f" {mark}{i}Z "} for i, message in enumerate(messages)]
        skeleton = self._apply(marked, generation_prompt)
        parts: list[str] = []
        spans: list[Span] = []
        end = length = 0
        found = list(re.finditer(rf"( ?){mark}(\d+)Z( ?)", skeleton))
        if sorted(int(match[2]) for match in found) != list(range(len(messages))):
            raise SettingsError(self._unsaid)
        for match in found:
            content = messages[int(match[2])]["content"]
            content = content if match[1] else content.lstrip()
            content = content if match[3] else content.rstrip()
            before = skeleton[end : match.start()]
            spans.append((length + len(before), length + len(before) + len(content)))
            parts += [before, content]
            length, end = spans[-1][1], match.end()
        return "".join(parts) + skeleton[end:], spans

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._written(messages, generation_prompt, in_parts=self._in_parts)

    def _written(self, messages: Sequence[Message], generation_prompt: bool, *, in_parts: bool) -> str:
        given: list[Any] = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if in_parts else message
            for message in messages
        ]
        with one_sentence(
            lambda error: f"The chat template of {self._name} refuses these messages: {first_line(error)}."
        ):
            return str(
                self._tokenizer.apply_chat_template(
                    given,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                    chat_template=self.template,
                )
            )

    def _says(self, messages: Sequence[Message], *, in_parts: bool | None = None) -> bool:
        """Whether the template writes each content once, unchanged."""
        in_parts = self._in_parts if in_parts is None else in_parts
        try:
            text = self._written(messages, True, in_parts=in_parts)
        except SettingsError:
            return False
        return all(text.count(message["content"]) == 1 for message in messages)

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template takes a content only as a list of parts, as one with images would be."""
        said = [user(_SAID)]
        return not self._says(said, in_parts=False) and self._says(said, in_parts=True)

    @property
    def _unsaid(self) -> str:
        return (
            f"The chat template of {self._name} does not write what is said once and unchanged: repair it, "
            "or choose another model."
        )

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template takes a system text as such; otherwise it goes into the first user turn."""
        return self._says([system(f"S {_SAID}"), user(f"U {_SAID}")])

    @cached_property
    def wants_bos(self) -> bool:
        """Whether the template asks for the tokenizer's BOS."""
        return "bos_token" in self.template

    @cached_property
    def _control(self) -> dict[str, int]:
        """Text of every control token, and its id."""
        return {
            token.content: number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
            or number >= self._n_ids
            or (token.content.strip() and token.content in self.template)
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

    def holds_control(self, text: str) -> bool:
        """Whether the text of a control token is in it."""
        return bool(self._control) and self._pattern.search(text) is not None

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenize_all([text])[0]

    def _tokenize_all(self, texts: list[str]) -> list[list[int]]:
        with one_sentence(lambda error: f"The tokenizer of {self._name} fails: {first_line(error)}."):
            return self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _control_only(self, ids: Sequence[int]) -> list[int]:
        """The unknown token is left out: it also stands for ordinary text."""
        unknown: Any = self._tokenizer.unk_token_id
        control = set(self._control.values()) - {unknown}
        return [token for token in ids if token in control]


def _default_template(given: str | Mapping[str, str] | None, name: str) -> str:
    """The template, or of several with names the one named `default`; without the byte-order mark that some
    editors put before it."""
    if isinstance(given, Mapping) and "default" not in given:
        raise SettingsError(
            f"{name} has chat templates named {', '.join(sorted(given))} and none named default: rename the "
            "one for chats."
        )
    template = given["default"] if isinstance(given, Mapping) else given
    if not isinstance(template, str) or not template.strip():
        raise SettingsError(f"{name} has no chat template: choose an instruction-tuned model.")
    return template.removeprefix("\ufeff")


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
