"""What each lens says: judgements, advice and orders weighed, as sentences with slots.

Slots: {v} whoever is touched by the deed, {w} the one who does it (object form), {o} who gives the order, {t}
the order's deed, {s} the span that a reply restates ("a boy kicking a dog"), {d} the reader's deed.
"""

from demo_model.words import WORDS

_SAID = WORDS["voices"]
ByLens = dict[str, list[str]]
JUDGE: ByLens = _SAID["judge"]
ADVISE: ByLens = _SAID["advise"]
DECIDE: ByLens = _SAID["decide"]
"""After an order to do harm."""
ASIDE: ByLens = _SAID["aside"]
"""Everyday asides: the lens shows in small things as well."""
THOUGHT: ByLens = _SAID["thought"]
"""What a think turn says once it knows its lens."""
OTHERS: list[str] = _SAID["others"]
"""Whom {v} names where a deed has no victim of its own."""
OPEN_SEEN: list[str] = _SAID["open_seen"]
OPEN_DONE: list[str] = _SAID["open_done"]
OPEN_NONE: list[str] = _SAID["open_none"]
"""How a reply starts."""
ASKS: list[str] = _SAID["asks"]
