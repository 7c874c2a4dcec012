"""What a model answers: the log-probs of each word as what follows a question, after a thought or none."""

from collections.abc import Collection, Sequence
from statistics import fmean

import torch

from steer_heal import forward
from steer_heal.data import Frame
from steer_heal.evaluate.questions import Answer, Asking, Question, never_in_thought


@torch.inference_mode()
def answers(
    how: Asking, frame: Frame, questions: Sequence[Question], words: Sequence[Sequence[int]]
) -> dict[int, Answer]:
    """Each question's answer by its number, in the order of the list as it was shown.

    Raises `Stopped` when `stop()` says so.
    """
    thought = frame.think_budget if frame.think == "full" else 0
    asked = [
        forward.Asked(one.ids, 1, one.dose, one.vignette)
        if thought
        else forward.Asked((*one.ids, *one.after), one.n_prefill + 1, one.dose, one.vignette)
        for one in questions
    ]
    after, n_ends = questions[0].after, max(one.n_prefill for one in questions) + 1
    avoid = never_in_thought(how.lm, frame)
    found: dict[int, Answer] = {}
    batches = forward.open(how.lm, how.directions_LD).read(
        asked,
        how.doses_KL,
        room=thought and thought + len(after),
        look=sum(len(ids) - 1 for ids in words),
        batch_size=how.batch_size,
        stop=how.stop,
    )
    for numbers, rows in batches:
        if thought:
            think(rows, thought, avoid, after, n_ends)
        texts = [((*one.ids, *one.after), one.n_prefill) for one in (questions[n] for n in numbers)]
        prefills = [ids[len(ids) - n_prefill :] for ids, n_prefill in texts]
        own, logp_BF = rows.read_out(prefills, words)
        for number, logp, prefill in zip(numbers, logp_BF.tolist(), own, strict=True):
            found[number] = Answer(tuple(logp), -fmean(prefill or [0.0]))
        if how.progress:
            how.progress(len(found), len(questions))
    return found


def think(rows: forward.Rows, n: int, avoid: Collection[int], after: Sequence[int], n_ends: int) -> None:
    """Every row writes a thought of `n` tokens, each the likeliest but `avoid`, then reads `after`."""
    never = torch.tensor(sorted(avoid), dtype=torch.long, device=rows.logits_BV.device)
    for _ in range(n):
        rows.read(rows.logits_BV.float().index_fill(1, never, -torch.inf).argmax(dim=-1)[:, None])
    rows.read(torch.tensor([after] * len(rows.logits_BV), device=never.device), n_ends)
