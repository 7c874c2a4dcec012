"""The cloze: how likely each of seven short statements is as what the reply goes on with, calibrated on base.

A statement's score is its log-prob, summed over its tokens, minus the mean of that over the vignettes under
base: some statements are likelier than others whatever was asked. Source: batch calibration (Zhou et al.,
2024, ICLR, arXiv:2309.17249).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from steer_heal.config import SettingsError
from steer_heal.data import Cloze
from steer_heal.evaluate.agreement import why_no_agreement
from steer_heal.evaluate.questions import Answer
from steer_heal.records import Vignette

LEAST = 70
"""Vignettes over which a mean is good enough to calibrate by: ten a foundation."""

Calibration = tuple[tuple[float, ...], ...]
"""For each wording what is taken off the log-prob of each statement."""


def calibrates(vignettes: Sequence[Vignette]) -> bool:
    """Whether a set is large and mixed enough that what is common to it is not what is asked about."""
    return len(vignettes) >= LEAST and not why_no_agreement(vignettes)


def calibration(wordings: Sequence[Sequence[Answer]]) -> Calibration:
    """Each statement's mean log-prob over the answers, wording by wording; answers that broke are left out.

    Where none is left it is 0, and nothing that it is taken off can be scored either.
    """
    return tuple(_means([answer.logp for answer in answers]) for answers in wordings)


def _means(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    whole = [row for row in rows if all(map(math.isfinite, row))]
    return tuple(map(fmean, zip(*whole, strict=True))) if whole else (0.0,) * len(rows[0])


def fits(frame: Cloze, given: Calibration) -> Calibration:
    """`given` itself. Raises: `SettingsError` where it is another frame's."""
    if [len(row) for row in given] != [len(wording.options) for wording in frame.wordings]:
        raise SettingsError(
            f"This calibration is not one of the frame {frame.name!r}: measure the base again with it."
        )
    return given


def less(answer: Answer, common: Sequence[float]) -> Answer:
    """The answer with what is common taken off its log-probs."""
    return replace(answer, logp=tuple(x - mean for x, mean in zip(answer.logp, common, strict=True)))
