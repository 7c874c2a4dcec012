"""The forced choice through transformers' own forward: any model, and steering by any operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steer_heal.data import Frame
from steer_heal.instrument.logp import last_logits, row_logp
from steer_heal.instrument.questions import Answer, Question, never_in_thought
from steer_heal.instrument.thinking import think_then_read
from steer_heal.models import LanguageModel
from steer_heal.records import Stopped
from steer_heal.vectors.steering import Operator, steer


def answers(
    lm: LanguageModel,
    frame: Frame,
    questions: Sequence[Question],
    words: Sequence[Sequence[int]],
    doses_KL: Tensor,
    directions_LD: Tensor | Operator,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[int, Answer]:
    """Each question's answer by its number, in the order of the list as it was shown.

    Raises `Stopped` when `stop()` says so.
    """
    found: dict[int, Answer] = {}
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index].ids))
    for start in range(0, len(questions), batch_size):
        if stop and stop():
            raise Stopped
        chosen = by_length[start : start + batch_size]
        batch = [questions[index] for index in chosen]
        found.update(zip(chosen, _batch(lm, frame, batch, words, doses_KL, directions_LD), strict=True))
        if progress:
            progress(len(found), len(questions))
    return found


def _batch(
    lm: LanguageModel,
    frame: Frame,
    batch: Sequence[Question],
    words: Sequence[Sequence[int]],
    doses_KL: Tensor,
    directions_LD: Tensor | Operator,
) -> list[Answer]:
    """The rows' answers: one pass for the first token of every word, one more for each longer word."""
    doses_BL = doses_KL[[question.dose for question in batch]]
    n_prefill = max(question.n_prefill for question in batch)
    rows = [question.ids for question in batch]
    firsts = [ids[0] for ids in words]
    if frame.think == "full":
        avoid = never_in_thought(lm, frame)
        logits_BTV = think_then_read(
            lm, rows, batch[0].after, frame.think_budget, avoid, n_prefill + 1, directions_LD, doses_BL
        )
        logp_BF = logits_BTV[:, -1].float().log_softmax(dim=-1)[:, firsts]
    else:
        with steer(lm.blocks, directions_LD, doses_BL):
            logits_BTV = last_logits(lm, rows, n_prefill + 1)
            logp_BF = logits_BTV[:, -1].float().log_softmax(dim=-1)[:, firsts]
            for column, ids in enumerate(words):
                if len(ids) > 1:
                    tails_BTV = last_logits(lm, [[*row, *ids] for row in rows], len(ids) + 1)
                    logp_BF[:, column] = torch.stack([row_logp(tail_TV, ids).sum() for tail_TV in tails_BTV])
    return [
        Answer(
            tuple(logp_F),
            -float(row_logp(logits_TV, (*question.ids, *question.after)[-question.n_prefill :]).mean()),
        )
        for question, logp_F, logits_TV in zip(batch, logp_BF.tolist(), logits_BTV, strict=True)
    ]
