"""How much an answer is about what was asked, under the weights that are active and without steering."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from steer_heal.evaluate.text_health import relevance
from steer_heal.generate.cache import RoomyCache, gather
from steer_heal.instrument.logp import picked
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
    stop: Callable[[], bool] | None = None,
) -> list[float | None]:
    """Each answer's `filter.relevance`: `own` holds its log-probs after its own prompt, under base.

    The others are those of `OTHERS` that are not the answer's own prompt, the same for one answer as for a
    set. Each is read once. Raises `Stopped` when `stop()` says so.
    """
    fixed = [tuple(lm.encode_chat([user(text)])) for text in OTHERS]
    others = [[ids for ids in fixed if ids != tuple(prompt)] for prompt in prompts_ids]
    found: list[list[list[float]]] = [[] for _ in others]
    for prompt in fixed:
        rows = [row for row, ids in enumerate(others) if prompt in ids and completions_ids[row]]
        rows.sort(key=lambda row: len(completions_ids[row]))
        for start in range(0, len(rows), _TOGETHER):
            if stop and stop():
                raise Stopped
            some = rows[start : start + _TOGETHER]
            read = _logp_after(lm, prompt, [completions_ids[row] for row in some])
            for row, logp in zip(some, read, strict=True):
                found[row].append(logp)
    return [relevance(*row) for row in zip(own, found, strict=True)]


@torch.inference_mode()
def _logp_after(lm: LanguageModel, prompt: Ids, completions: Sequence[Sequence[int]]) -> list[list[float]]:
    """`text_logp` of completions, none empty, after the same prompt, which is read once."""
    cache, device = RoomyCache(lm.n_layers, 0), lm.device
    width, rows = max(map(len, completions)), torch.zeros(len(completions), dtype=torch.long)
    ids_1T = torch.tensor([prompt], device=device)
    first = lm.model(input_ids=ids_1T, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    ids_BT = torch.tensor([[*ids, *[lm.pad_id] * (width - len(ids))] for ids in completions], device=device)
    positions_BT = (len(prompt) + torch.arange(width, device=device)).expand(len(completions), -1)
    rest = lm.model(
        input_ids=ids_BT,
        position_ids=positions_BT,
        past_key_values=gather([cache], rows, rows, width),
        use_cache=True,
    ).logits
    logits_BTV = torch.cat([first.expand(len(completions), -1, -1), rest[:, :-1]], dim=1)
    logp_BT = picked(logits_BTV.flatten(0, 1), ids_BT.flatten()).view(ids_BT.shape)
    return [row[: len(ids)] for row, ids in zip(logp_BT.tolist(), completions, strict=True)]
