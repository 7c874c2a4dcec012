"""How much an answer is about what was asked, under the weights that are active and without steering."""

from collections.abc import Callable, Sequence

from steer_heal.evaluate.logp import text_logp
from steer_heal.evaluate.text_health import relevance
from steer_heal.models import LanguageModel, user

OTHERS = ("What should I do?", "I had a dream in which I could breathe under water.")
"""Other prompts that an answer is read after: one that nearly any talk would answer, and one with a subject
of its own (docs/reports/text-health.md)."""
_TOGETHER = 16
"""Answers read at once."""


def relevances(
    lm: LanguageModel,
    prompts_ids: Sequence[Sequence[int]],
    completions_ids: Sequence[Sequence[int]],
    own: Sequence[Sequence[float]],
    *,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[float | None]:
    """Each answer's `filter.relevance`: `own` holds its log-probs after its own prompt, under base.

    The others are those of `OTHERS` that are not the answer's own prompt, the same for one answer as for a
    set. Each is read once. `progress` is told how many answers have been read so far, an answer once after
    each of `OTHERS`. Raises `Stopped` when `stop()` says so.
    """
    fixed = [tuple(lm.encode_chat([user(text)])) for text in OTHERS]
    others = [[ids for ids in fixed if ids != tuple(prompt)] for prompt in prompts_ids]
    found: list[list[list[float]]] = [[] for _ in others]
    for place, prompt in enumerate(fixed):
        rows = [row for row, ids in enumerate(others) if prompt in ids and completions_ids[row]]
        rows.sort(key=lambda row: len(completions_ids[row]))

        def heard(done: int, _: int, before: int = place * len(others)) -> None:
            if progress:
                progress(before + done)

        texts = [completions_ids[row] for row in rows]
        read = text_logp(lm, [prompt] * len(rows), texts, batch_size=_TOGETHER, progress=heard, stop=stop)
        for row, logp in zip(rows, read, strict=True):
            found[row].append(logp)
    return [relevance(*row) for row in zip(own, found, strict=True)]
