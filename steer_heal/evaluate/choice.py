"""Which of the seven foundations a model names, for every vignette and dose: by a choice, or by a cloze; or
which of a trait's two poles it speaks like, by a cloze of what either would say.

A choice is asked with the answers listed in every order of the frame: the log-probabilities of the seven
answer words after the prefill are averaged over the orders, which cancels a preference for a place in the
list. A cloze is asked in every wording, and the calibrated scores of its statements are averaged likewise
(see `cloze`). Their softmax is the vignette's distribution; a profile is its mean over vignettes. Answer mass
is the probability on the seven words before the softmax: what the model would have answered anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.data import AnyFrame, Cloze, Frame, OwnAxis
from steer_heal.evaluate.agreement import NO_LABELS, agreement
from steer_heal.evaluate.cloze import Calibration, calibration, fits, less
from steer_heal.evaluate.questions import Answer, Asking, answer_ids, ask
from steer_heal.evaluate.scoring import answers
from steer_heal.models import LanguageModel
from steer_heal.records import Agreement, Profile, Vignette, VignetteScore
from steer_heal.vectors.steering import Operator
from steer_heal.vectors.vector import SteeringVector

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


def evaluate(
    lm: LanguageModel,
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    *,
    vector: SteeringVector | Tensor | Operator | None = None,
    coefficients_RL: Tensor | None = None,
    calibrated: Calibration = (),
    batch_size: int = 32,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> list[Profile]:
    """One profile for each row of `coefficients_RL` (K doses in the same passes); the model's own when None.

    `vector`: one, or the directions (M, L, D) of several, whose doses are (K, L, M).

    `calibrated`: the calibration of a cloze, from the base's profile; when none, what is measured here is the
    base's and gives it. A vignette whose log-probs are not finite or whose answer mass is 0 counts as mass 0
    in the coherence and is left out of the profile (`n_invalid` says how many). Errors: `SettingsError`
    without vignettes, for doses without a vector, or for doses of a cloze without its calibration; `Stopped`
    when `stop()` says so.
    """
    if not vignettes:
        raise SettingsError("There are no vignettes to evaluate on: give at least one.")
    if coefficients_RL is not None and vector is None:
        raise SettingsError("Doses need a steering vector: extract one first.")
    doses_KL = torch.zeros(1, lm.n_layers) if coefficients_RL is None else coefficients_RL
    if vector is None:
        vector = torch.zeros(lm.n_layers, lm.width)
    directions_LD = vector.steers if isinstance(vector, SteeringVector) else vector
    how = Asking(lm, doses_KL, directions_LD, batch_size, progress, stop)
    if isinstance(frame, Frame):
        asked, calibrated = _asked(how, vignettes, frame), ()
    elif coefficients_RL is not None and not calibrated:
        raise SettingsError(f"Doses of the frame {frame.name!r} need a calibration: measure the base first.")
    else:
        asked, calibrated = _cloze(how, vignettes, frame, calibrated)
    return [
        profile(
            [score(row, asked[dose][number], frame) for number, row in enumerate(vignettes)],
            frame,
            calibrated,
        )
        for dose in range(len(doses_KL))
    ]


Asked = list[list[list[Answer]]]
"""By dose, vignette, and order or wording."""


def _cloze(
    how: Asking, vignettes: Sequence[Vignette], frame: Cloze, calibrated: Calibration
) -> tuple[Asked, Calibration]:
    """Every wording asked, with its calibration taken off; and that calibration."""
    wordings = [frame.at_once] if isinstance(frame, OwnAxis) else frame.wordings
    if isinstance(frame, OwnAxis) and any(map(how.lm.chat.holds_control, frame.at_once.options)):
        raise SettingsError(f"A statement of the trait holds a control token of {how.lm.name}: take it out.")
    n, found = len(wordings), []
    for number, wording in enumerate(wordings):

        def heard(done: int, total: int, before: int = number) -> None:
            if how.progress:
                how.progress(before * total + done, n * total)

        found.append(_asked(replace(how, progress=heard), vignettes, wording))
    if isinstance(frame, OwnAxis):
        found = _pairs(found[0], [len(ids) for ids in answer_ids(how.lm, frame.at_once)])
    common = fits(frame, calibrated or calibration([[one for (one,) in asked[0]] for asked in found]))
    asked = [
        [
            [less(one, mean) for (one,), mean in zip(each, common, strict=True)]
            for each in zip(*dose, strict=True)
        ]
        for dose in zip(*found, strict=True)
    ]
    return asked, common


def _pairs(asked: Asked, lengths: Sequence[int]) -> list[Asked]:
    """Statements of these lengths that were asked at once, as wordings of a pair each, in nats a token."""

    def pair(answer: Answer, at: int) -> Answer:
        return replace(answer, logp=tuple(answer.logp[n] / lengths[n] for n in (at, at + 1)))

    return [[[[pair(one, at)] for (one,) in dose] for dose in asked] for at in range(0, len(lengths), 2)]


def _asked(how: Asking, vignettes: Sequence[Vignette], frame: Frame) -> Asked:
    """Every dose, vignette and order asked, and answered."""
    lm, questions, words = how.lm, ask(how, vignettes, frame), answer_ids(how.lm, frame)
    if frame.think == "full" and any(len(ids) > 1 for ids in words):
        raise SettingsError(f"The frame {frame.name!r} needs answers that are one token each for {lm.name}.")
    found = answers(how, frame, questions, words)
    made: Asked = [[[] for _ in vignettes] for _ in how.doses_KL]
    for number, question in enumerate(questions):
        logp_F, nll = found[number].logp, found[number].prefill_nll
        backwards = frame.answer == "index" and question.order == "reversed"
        made[question.dose][question.vignette].append(Answer(logp_F[::-1] if backwards else logp_F, nll))
    return made


def score(vignette: Vignette, orders: Sequence[Answer], frame: AnyFrame | None = None) -> VignetteScore:
    """A vignette's score: log-probs averaged over orders or wordings, their softmax, mass, and `order_tv`.

    `order_tv` is the total variation between the distributions of two orders or wordings, over all pairs.
    """
    logp_OF = torch.tensor([answer.logp for answer in orders], dtype=torch.float64)
    mean_F = logp_OF.mean(dim=0)
    mass = 1.0 if isinstance(frame, Cloze) else float(logp_OF.exp().sum(dim=1).mean())
    valid = bool(torch.isfinite(logp_OF).all()) and mass > 0.0
    p_F = mean_F.softmax(dim=0) if valid else torch.zeros_like(mean_F)
    each_OF = logp_OF.softmax(dim=1)
    pairs = [0.5 * float((a_F - b_F).abs().sum()) for a_F, b_F in combinations(each_OF, 2)]
    names = frame.names if frame else FOUNDATIONS
    return VignetteScore(
        id=vignette.id,
        foundation=vignette.foundation,
        score=dict(zip(names, mean_F.tolist(), strict=True)),
        p=dict(zip(names, p_F.tolist(), strict=True)),
        mass=mass if valid else 0.0,
        prefill_nll=fmean(answer.prefill_nll for answer in orders),
        order_tv=fmean(pairs) if valid and pairs else 0.0,
    )


def profile(
    scores: Sequence[VignetteScore], frame: AnyFrame | None = None, calibrated: Calibration = ()
) -> Profile:
    """Mean over the vignettes that could be answered; coherence is the mean answer mass over all of them."""
    valid = [row for row in scores if row.mass > 0.0]
    names = frame.names if frame else FOUNDATIONS
    return Profile(
        p={name: fmean(row.p[name] for row in valid) if valid else 0.0 for name in names},
        coherence=None if isinstance(frame, Cloze) else fmean(row.mass for row in scores),
        n_vignettes=len(scores),
        per_vignette=tuple(scores),
        n_invalid=len(scores) - len(valid),
        frame=frame.name if frame else "",
        agreement=Agreement(why=NO_LABELS) if isinstance(frame, OwnAxis) else agreement(scores),
        order_tv=fmean(row.order_tv for row in valid) if valid else None,
        calibration=calibrated,
    )
