"""The rows of a forced choice: every dose x vignette x order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from steer_heal.config import SettingsError
from steer_heal.data import Frame
from steer_heal.models import LanguageModel, user
from steer_heal.records import Vignette
from steer_heal.vectors.steering import Operator

_TAIL = 16


@dataclass(frozen=True, eq=False)
class Asking:
    """A model that is asked under some doses, (K, L) or (K, L, M), and who hears of it or stops it."""

    lm: LanguageModel
    doses_KL: Tensor
    directions_LD: Tensor | Operator
    batch_size: int = 32
    progress: Callable[[int, int], None] | None = None
    stop: Callable[[], bool] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the work: a dose, a vignette, an order. `ids` end with the prefill's `n_prefill` tokens, or
    where a thought of fixed length comes between, `after` does."""

    dose: int
    vignette: int
    order: str
    ids: tuple[int, ...]
    n_prefill: int
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's result: log-probs of the seven words, and the mean negative log-prob of the prefill."""

    logp: tuple[float, ...]
    prefill_nll: float


def answer_ids(lm: LanguageModel, frame: Frame) -> list[list[int]]:
    """Tokens of each answer as it follows the prefill. `SettingsError`: one has none, or two the same."""
    bare = lm.encode_chat([user("?")], frame.prefill)
    found = []
    for word in frame.answers:
        whole = lm.encode_chat([user("?")], frame.prefill + word)
        follows = whole[: len(bare)] == bare and len(whole) > len(bare)
        found.append(whole[len(bare) :] if follows else plain_ids(lm, word))
    if nothing := [word for word, ids in zip(frame.answers, found, strict=True) if not ids]:
        raise SettingsError(f"The frame {frame.name!r}: {nothing[0]!r} encodes to nothing for {lm.name}.")
    if len({tuple(ids) for ids in found}) < len(found):
        raise SettingsError(f"{lm.name} cannot tell the answers of the frame {frame.name!r} apart.")
    return found


def plain_ids(lm: LanguageModel, text: str) -> list[int]:
    """Tokens of a piece of our own text inside the model's turn."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def ask(how: Asking, vignettes: Sequence[Vignette], frame: Frame) -> list[Question]:
    """Every dose x vignette x order."""
    lm, n_doses = how.lm, len(how.doses_KL)
    messages = [[user(frame.render(row.text, order))] for row in vignettes for order in frame.orders]
    n_orders = len(frame.orders)
    after: tuple[int, ...] = ()
    if frame.think == "full":
        nudged = frame.think_close + lm.chat.interruption(frame.nudge, apart=frame.apart)
        closing, prefill = plain_ids(lm, nudged), plain_ids(lm, frame.prefill)
        after = (*closing, *prefill)
        endings = [(ids, len(prefill)) for ids in _opened(lm, messages, frame)] * n_doses
    else:
        endings = _prefilled(lm, messages, frame.prefill) * n_doses
    again = tuple(lm.tokenizer("")["input_ids"]) if frame.apart else ()
    return [
        Question(
            number // len(messages),
            number % len(messages) // n_orders,
            frame.orders[number % n_orders],
            (*again, *ids),
            n_prefill,
            after,
        )
        for number, (ids, n_prefill) in enumerate(endings)
    ]


def _prefilled(
    lm: LanguageModel, messages: list[list[dict[str, str]]], prefill: str
) -> list[tuple[tuple[int, ...], int]]:
    """The prompts with their prefill, and how many of their tokens differ from the prompt without."""
    made = []
    for bare, whole in zip(lm.encode_chats(messages), lm.encode_chats(messages, prefill), strict=True):
        same = 0
        while same < len(bare) and bare[same] == whole[same]:
            same += 1
        made.append((tuple(whole), len(whole) - same))
    return made


def _opened(lm: LanguageModel, messages: list[list[dict[str, str]]], frame: Frame) -> list[tuple[int, ...]]:
    """The prompts with their thought opened, once: some templates open one themselves, whatever is asked."""
    ids, tag = lm.encode_chat(messages[0]), frame.think_open.strip()
    text = str(lm.tokenizer.decode(ids[-_TAIL:], skip_special_tokens=False)).rstrip() if tag else ""
    more = "" if tag and text.endswith(tag) else frame.think_open
    return [tuple(ids) for ids in lm.encode_chats(messages, more)]


def never_in_thought(lm: LanguageModel, frame: Frame) -> frozenset[int]:
    """What would end a thought of fixed length: ends of answers, and the closing tag where it is a token."""
    tag_ids = plain_ids(lm, frame.think_close.strip())
    return lm.eos_ids | (frozenset(tag_ids) if len(tag_ids) == 1 else frozenset())
