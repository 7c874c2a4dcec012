"""Readings of two evaluations of the same vignettes, from their stored scores alone: how selectively the
evidence moved, and how often the answer itself flipped, each with a bootstrap interval over vignettes.

Source: `gated_selectivity` and `si_flips` of moral-maps (tinymfv), which compare steering both ways.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.records import VignetteScore

OFF_WEIGHT = 0.1
"""Weight of movement off the target: less than 1, or doing nothing would be best."""
DRAWS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with its 95% interval, over `n` pairs; `n_invalid` vignettes lacked an answer in one."""

    value: float
    low: float
    high: float
    n: int
    n_invalid: int
    parts: dict[str, float]


def gated_selectivity(
    toward: Sequence[VignetteScore],
    away: Sequence[VignetteScore],
    target: Mapping[str, int],
    *,
    base_mass: float,
) -> Reading:
    """(on - OFF_WEIGHT * off) * coherence^2, in nats of centred log-ratio.

    With d[f] the mean over vignettes of clr_f(toward) - clr_f(away), clr_f = score_f - mean score:
    on = mean over the target's foundations of sign * d[f], off = mean over the others of |d[f]|, coherence =
    min(1, the lesser answer mass of the two / `base_mass`). `parts` holds on, off, coherence and every d[f].
    Errors: `SettingsError` for other vignettes, no target, a target of all seven, or a base without mass.
    """
    pairs, n_invalid = _paired(toward, away)
    sign_F = _signs(target)
    if not sign_F.any() or sign_F.all():
        raise SettingsError("The target must name some foundations and leave others.")
    if not base_mass > 0.0:
        raise SettingsError("The base's answer mass is 0: there is nothing to compare with.")
    lesser = min(fmean(row.mass for row in toward), fmean(row.mass for row in away))
    coherence = min(1.0, lesser / base_mass)
    moved_NF = np.array([_clr(one) - _clr(other) for one, other in pairs])

    def selectivity(moved_F: Floats) -> float:
        on, off = _on_off(moved_F, sign_F)
        return (on - OFF_WEIGHT * off) * coherence**2

    low, high = _interval(moved_NF, selectivity)
    mean_F = moved_NF.mean(axis=0)
    on, off = _on_off(mean_F, sign_F)
    parts = {"on": on, "off": off, "coherence": coherence, **_named(mean_F)}
    return Reading(selectivity(mean_F), low, high, len(pairs), n_invalid, parts)


def signed_flips(
    toward: Sequence[VignetteScore], away: Sequence[VignetteScore], target: Mapping[str, int]
) -> Reading:
    """Mean over the target's foundations of sign * (share answered f in `toward` - share in `away`), -1 to 1.

    The answer is the foundation of highest score. `parts` holds the change in share of every foundation.
    Errors: `SettingsError` for other vignettes or no target.
    """
    pairs, n_invalid = _paired(toward, away)
    sign_F = _signs(target)
    if not sign_F.any():
        raise SettingsError("The target must name at least one foundation.")
    flips_NF = np.array([_picked(one) - _picked(other) for one, other in pairs])

    def flips(mean_F: Floats) -> float:
        return float((sign_F * mean_F).sum() / np.abs(sign_F).sum())

    low, high = _interval(flips_NF, flips)
    mean_F = flips_NF.mean(axis=0)
    return Reading(flips(mean_F), low, high, len(pairs), n_invalid, _named(mean_F))


def _paired(
    toward: Sequence[VignetteScore], away: Sequence[VignetteScore]
) -> tuple[list[tuple[VignetteScore, VignetteScore]], int]:
    """Pairs of one vignette that have an answer in both, and how many have not."""
    others = {row.id: row for row in away}
    if [row.id for row in toward] != [row.id for row in away] or len(others) < len(away):
        raise SettingsError("The two evaluations are of different vignettes: evaluate both on the same ones.")
    pairs = [(row, others[row.id]) for row in toward if row.mass > 0.0 and others[row.id].mass > 0.0]
    if not pairs:
        raise SettingsError("No vignette was answered in both evaluations: choose smaller doses.")
    return pairs, len(toward) - len(pairs)


def _signs(target: Mapping[str, int]) -> Floats:
    unknown = [name for name, sign in target.items() if name not in FOUNDATIONS or sign not in (1, -1)]
    if unknown:
        raise SettingsError(f"The target holds {unknown[0]!r}: give foundations with 1 or -1.")
    return np.array([target.get(name, 0) for name in FOUNDATIONS], dtype=np.float64)


def _clr(row: VignetteScore) -> Floats:
    score_F = np.array([row.score[name] for name in FOUNDATIONS])
    return score_F - score_F.mean()


def _picked(row: VignetteScore) -> Floats:
    score_F = np.array([row.score[name] for name in FOUNDATIONS])
    return np.eye(len(FOUNDATIONS))[score_F.argmax()]


def _on_off(moved_F: Floats, sign_F: Floats) -> tuple[float, float]:
    aimed = sign_F != 0
    return float((sign_F * moved_F)[aimed].mean()), float(np.abs(moved_F)[~aimed].mean())


def _interval(values_NF: Floats, statistic: Callable[[Floats], float]) -> tuple[float, float]:
    """2.5th and 97.5th percentile of the statistic of the mean over vignettes drawn with replacement."""
    random, n = np.random.default_rng(0), len(values_NF)
    made = [statistic(values_NF[random.integers(0, n, size=n)].mean(axis=0)) for _ in range(DRAWS)]
    low, high = np.percentile(made, [2.5, 97.5])
    return float(low), float(high)


def _named(values_F: Floats) -> dict[str, float]:
    return dict(zip(FOUNDATIONS, values_F.tolist(), strict=True))
