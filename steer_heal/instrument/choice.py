"""The forced choice: which of the seven foundations a model names, for every vignette and dose.

Each vignette is asked with the answers listed in every order of the frame. The log-probabilities of the seven
answer words after the prefill are averaged over the orders (which cancels a preference for a place in the
list) and their softmax is the vignette's distribution; a profile is its mean over vignettes. Answer mass is
the probability on the seven words before the softmax: what the model would have answered anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor

from ..config import FOUNDATIONS, SettingsError
from ..data import Frame
from ..generate.lean import why_not
from ..models import LanguageModel
from ..records import Profile, Vignette, VignetteScore
from ..vector import SteeringVector
from . import lean, plain
from .questions import Answer, answer_ids, ask


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
    rest = (batch_size, progress, stop)
    if isinstance(directions_LD, Tensor) and not why_not(lm):
        found = lean.answers(lm, frame, questions, words, doses_KL, directions_LD, *rest)
    else:
        found = plain.answers(lm, frame, questions, words, doses_KL, directions_LD, *rest)
    orders: dict[tuple[int, int], list[Answer]] = {}
    for number, question in enumerate(questions):
        logp_F, nll = found[number].logp, found[number].prefill_nll
        backwards = frame.answer == "index" and question.order == "reversed"
        answer = Answer(logp_F[::-1] if backwards else logp_F, nll)
        orders.setdefault((question.dose, question.vignette), []).append(answer)
    return [
        profile([score(vignette, orders[dose, number]) for number, vignette in enumerate(vignettes)])
        for dose in range(len(doses_KL))
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
