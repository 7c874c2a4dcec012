"""The forced choice: which of the seven foundations a model names, for every vignette and dose.

Each vignette is asked with the answers listed in every order of the frame. The log-probabilities of the seven
answer words after the prefill are averaged over the orders (which cancels a preference for a place in the
list) and their softmax is the vignette's distribution; a profile is its mean over vignettes. Answer mass is
the probability on the seven words before the softmax: what the model would have answered anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..config import FOUNDATIONS, SettingsError
from ..data import Frame
from ..models import LanguageModel
from ..records import Profile, Stopped, Vignette, VignetteScore
from ..steering import Operator, steer
from ..vector import SteeringVector
from .logp import last_logits, row_logp
from .questions import Question, answer_ids, ask, never_in_thought
from .thinking import think_then_read


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's result: log-probs of the seven words, and the mean negative log-prob of the prefill."""

    logp: tuple[float, ...]
    prefill_nll: float


def evaluate(
    lm: LanguageModel,
    vignettes: Sequence[Vignette],
    frame: Frame,
    *,
    vector: SteeringVector | None = None,
    coefficients_KL: Tensor | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Profile]:
    """One profile for each row of `coefficients_KL` (K doses in the same passes); the model's own when None.

    A vignette whose log-probs are not finite or whose answer mass is 0 counts as mass 0 in the coherence and
    is left out of the profile (`n_invalid` says how many). Errors: `SettingsError` without vignettes, or for
    doses without a vector; `Stopped` when `stop()` says so.
    """
    if not vignettes:
        raise SettingsError("There are no vignettes to evaluate on: give at least one.")
    if coefficients_KL is not None and vector is None:
        raise SettingsError("Doses need a steering vector: extract one first.")
    doses_KL = torch.zeros(1, lm.n_layers) if coefficients_KL is None else coefficients_KL
    directions_LD = torch.zeros(lm.n_layers, lm.width) if vector is None else vector.steers
    questions = ask(lm, vignettes, frame, doses_KL, directions_LD, batch_size, stop)
    words = answer_ids(lm, frame)
    if frame.think == "full" and any(len(ids) > 1 for ids in words):
        raise SettingsError(f"The frame {frame.name!r} needs answers that are one token each for {lm.name}.")
    found: dict[int, Answer] = {}
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index].ids))
    for start in range(0, len(questions), batch_size):
        if stop and stop():
            raise Stopped
        chosen = by_length[start : start + batch_size]
        batch = [questions[index] for index in chosen]
        found.update(zip(chosen, _answers(lm, frame, batch, words, doses_KL, directions_LD), strict=True))
        if progress:
            progress(min(start + batch_size, len(questions)), len(questions))
    orders: dict[tuple[int, int], list[Answer]] = {}
    for index, question in enumerate(questions):
        orders.setdefault((question.dose, question.vignette), []).append(found[index])
    return [
        profile([score(vignette, orders[dose, number]) for number, vignette in enumerate(vignettes)])
        for dose in range(len(doses_KL))
    ]


def _answers(
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
            tuple(logp_F[::-1] if frame.answer == "index" and question.order == "reversed" else logp_F),
            -float(row_logp(logits_TV, (*question.ids, *question.after)[-question.n_prefill :]).mean()),
        )
        for question, logp_F, logits_TV in zip(batch, logp_BF.tolist(), logits_BTV, strict=True)
    ]


def score(vignette: Vignette, orders: Sequence[Answer]) -> VignetteScore:
    """A vignette's score: log-probs averaged over the orders, their softmax, answer mass, order effect.

    `order_tv` is the total variation between the distributions of the first and the last order.
    """
    logp_OF = torch.tensor([answer.logp for answer in orders], dtype=torch.float64)
    mean_F = logp_OF.mean(dim=0)
    mass = float(logp_OF.exp().sum(dim=1).mean())
    valid = bool(torch.isfinite(logp_OF).all()) and mass > 0.0
    p_F = mean_F.softmax(dim=0) if valid else torch.zeros_like(mean_F)
    each_OF = logp_OF.softmax(dim=1)
    return VignetteScore(
        id=vignette.id,
        foundation=vignette.foundation,
        score=dict(zip(FOUNDATIONS, mean_F.tolist(), strict=True)),
        p=dict(zip(FOUNDATIONS, p_F.tolist(), strict=True)),
        mass=mass if valid else 0.0,
        prefill_nll=fmean(answer.prefill_nll for answer in orders),
        order_tv=0.5 * float((each_OF[0] - each_OF[-1]).abs().sum()) if valid else 0.0,
    )


def profile(scores: Sequence[VignetteScore]) -> Profile:
    """Mean over the vignettes that could be answered; coherence is the mean answer mass over all of them."""
    valid = [row for row in scores if row.mass > 0.0]
    return Profile(
        p={name: fmean(row.p[name] for row in valid) if valid else 0.0 for name in FOUNDATIONS},
        coherence=fmean(row.mass for row in scores),
        n_vignettes=len(scores),
        per_vignette=tuple(scores),
        n_invalid=len(scores) - len(valid),
    )


def trait_shift(moved: dict[str, float], base: dict[str, float], target: dict[str, int]) -> float:
    """How far a profile moved along a trait: sum over the target's foundations of sign * (p - p of base).

    For `care_over_authority`: Care up plus SocialNorms down, in units of probability.
    """
    return sum(sign * (moved[name] - base[name]) for name, sign in target.items())
