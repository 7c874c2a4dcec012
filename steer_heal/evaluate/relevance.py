"""How much an answer is about what was asked, under the weights that are active and without steering."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steer_heal import forward
from steer_heal.evaluate.text_health import relevance
from steer_heal.models import LanguageModel, user
from steer_heal.records import Stopped

OTHERS = ("What should I do?", "I had a dream in which I could breathe under water.")
"""Other prompts that an answer is read after: one that nearly any talk would answer, and one with a subject
of its own (docs/reports/text-health.md)."""
_TOGETHER = 16
"""Answers read at once."""

Ids = tuple[int, ...]


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
        for start in range(0, len(rows), _TOGETHER):
            if stop and stop():
                raise Stopped
            some = rows[start : start + _TOGETHER]
            read = _logp_after(lm, prompt, [completions_ids[row] for row in some])
            for row, logp in zip(some, read, strict=True):
                found[row].append(logp)
            if progress:
                progress(place * len(others) + start + len(some))
    return [relevance(*row) for row in zip(own, found, strict=True)]


@torch.inference_mode()
def _logp_after(lm: LanguageModel, prompt: Ids, completions: Sequence[Sequence[int]]) -> list[list[float]]:
    """`text_logp` of completions, none empty, after the same prompt, which is read once."""
    base_BL, n = torch.zeros(len(completions), lm.n_layers), max(map(len, completions))
    return forward.open(lm).begin([prompt] * len(completions), base_BL, n).follow(completions)
