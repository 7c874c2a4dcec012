"""Messages that somebody might send, drafted by a model itself: what the replies of two poles answer.

The user's turn is begun for the model, which goes on with it, told the one persona or the other before.
Source: instructions drawn from a chat template alone (Xu et al., 2024, arXiv:2406.08464).
"""

import itertools
import re
from collections.abc import Callable, Sequence

import torch

from steer_heal.config import THRESHOLDS, SampleSettings
from steer_heal.data import own_traits
from steer_heal.evaluate.text_health import repetition, variety
from steer_heal.generate import Row, complete
from steer_heal.models import LanguageModel, system, user

OPENINGS = ("I", "My", "Should I", "Do you think", "What would you do if", "Yesterday I")
EACH = 2
"""How often a message is drawn of each opening under either persona."""
DRAWN = SampleSettings(max_new_tokens=40, temperature=0.8, top_p=0.95, top_k=0, seed=0)
N_DRAWN = EACH * 2 * len(OPENINGS)
SHORTEST, LONGEST = 5, 40
"""Words of a scene."""
ALIKE = 0.5
"""Share of the words of two texts, each counted once, from which on they are as good as the same."""
_WORD = re.compile(r"[^\W\d_]+")
_TELLING = 4
"""Letters of a persona's word from which on it says which pole is meant."""


def drafted(
    lm: LanguageModel, positive: str, negative: str, taken: Sequence[str], say: Callable[[str], None]
) -> list[str]:
    """The sound ones of the scenes that the model drafts, none like another or like one of `taken`; always
    the same on one machine. `say` hears before every token what is drafted, and may end it by raising."""
    told = [(persona, text) for text in OPENINGS for persona in (positive, negative)] * EACH
    chats = [[system(persona), user(text)] for persona, text in told]
    rows = [
        Row(tuple(ids), rng_stream=number)
        for number, ids in enumerate(lm.chat.encode_all(chats, unfinished=True))
    ]

    steps = itertools.count(1)

    def stop() -> bool:
        say(f"drafts what somebody might say: step {next(steps)} of some {DRAWN.max_new_tokens}")
        return False

    written = complete(lm, rows, torch.zeros(lm.n_layers, lm.width), DRAWN, stop=stop)
    found: list[str] = []
    for (_, opening), completion in zip(told, written, strict=True):
        scene = whole_sentences(opening + completion.text)
        if (
            sound(scene, positive, negative)
            and not lm.chat.holds_control(scene)
            and not any(alike(scene, other) for other in (*taken, *found))
        ):
            found.append(scene)
    return found


def whole_sentences(text: str) -> str:
    """The longest beginning of the first line that ends a sentence; nothing where none does."""
    ended = re.match(r".*[.!?](?=\s|$)", text.strip().partition("\n")[0])
    return " ".join(ended[0].split()) if ended else ""


def sound(scene: str, positive: str, negative: str) -> bool:
    """Whether it is a message of the right length that does not repeat itself, names neither pole, and has
    neither a gap to fill in nor a list."""
    said = words(scene)
    right_length = SHORTEST <= len(scene.split()) <= LONGEST
    plain = not re.search(r"[\[\]{}<>*#|_\\]|\d[.)]\s", scene)
    named = any(word.startswith(name) for word in said for name in telling(positive, negative))
    return right_length and plain and not named and not repeats(scene)


def telling(positive: str, negative: str) -> set[str]:
    """The poles where these are a word each, else the longer words that only one of the personas has."""
    differ = words(positive) ^ words(negative)
    return {word for word in differ if len(word) >= _TELLING} | (
        differ & set(own_traits.names(positive, negative))
    )


def repeats(text: str) -> bool:
    """Whether a short text says something three times over, or the same few words again and again."""
    return repetition(text) > 0.0 or variety(text) < THRESHOLDS.variety_broken


def alike(one: str, other: str) -> bool:
    """Whether two texts say much the same."""
    some, others = words(one), words(other)
    return len(some & others) > ALIKE * len(some | others)


def words(text: str) -> set[str]:
    """The words, in small letters, each once."""
    return set(_WORD.findall(text.casefold()))
