"""Log-probs of the last tokens of a row, with the output layer run at their positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steer_heal.models import LanguageModel, left_pad
from steer_heal.records import Stopped

FLOAT32_LIMIT = 1 << 24
"""Logits turned into float32 at once."""


@torch.inference_mode()
def last_logits(lm: LanguageModel, rows: Sequence[Sequence[int]], n: int) -> Tensor:
    """Logits (B, n, V) at each row's last `n` positions, under the steering and adapters that are active.

    Rows are padded on the left; position -1 is the row's last token.
    """
    batch = left_pad(rows, lm.pad_id, lm.device)
    out = lm.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        logits_to_keep=n,
    )
    return out.logits


def picked(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """Log-prob of one token at each position, float32, a slice of positions at a time."""
    step = max(1, FLOAT32_LIMIT // logits_NV.shape[-1])
    parts = []
    for some_NV, some_N in zip(logits_NV.split(step), ids_N.split(step), strict=True):
        wide_NV = some_NV.float()
        parts.append(wide_NV.gather(-1, some_N[:, None]).squeeze(-1) - wide_NV.logsumexp(-1))
    return torch.cat(parts)


def row_logp(logits_TV: Tensor, ids: Sequence[int]) -> Tensor:
    """Log-probs of the row's last tokens `ids`, from logits whose last position is the row's last token."""
    n = len(ids)
    wanted_N = torch.tensor(ids, device=logits_TV.device)
    return picked(logits_TV[-n - 1 : -1], wanted_N)


def text_logp(
    lm: LanguageModel,
    prompts_ids: Sequence[Sequence[int]],
    completions_ids: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[float]]:
    """Log-prob of every token of each completion after its prompt, under the weights that are active.

    An empty completion gives an empty list. Raises `Stopped` when `stop()` says so.
    """
    pairs = [(list(prompt), list(ids)) for prompt, ids in zip(prompts_ids, completions_ids, strict=True)]
    found: list[list[float]] = [[] for _ in pairs]
    todo = [index for index, (_, ids) in enumerate(pairs) if ids]
    todo.sort(key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    for start in range(0, len(todo), batch_size):
        if stop and stop():
            raise Stopped
        chosen = todo[start : start + batch_size]
        keep = 1 + max(len(pairs[index][1]) for index in chosen)
        logits_BTV = last_logits(lm, [pairs[index][0] + pairs[index][1] for index in chosen], keep)
        for index, logits_TV in zip(chosen, logits_BTV, strict=True):
            found[index] = row_logp(logits_TV, pairs[index][1]).tolist()
        if progress:
            progress(min(start + batch_size, len(todo)), len(todo))
    return found
