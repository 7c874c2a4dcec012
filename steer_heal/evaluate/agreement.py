"""What a profile is worth: how often the likeliest foundation is the label."""

import math
from collections import Counter
from collections.abc import Sequence

from steer_heal.records import Agreement, Vignette, VignetteScore

LEAST = 14
"""Fewer vignettes, two a foundation, tell nothing from chance."""
NO_LABELS = "a trait measured on its own axis has no labels to agree with"
Z_95 = 1.959964
"""A normal variable lies within so many standard deviations of its mean in 95%."""


def why_no_agreement(rows: Sequence[Vignette | VignetteScore]) -> str:
    """Why a set of vignettes gives no agreement, a clause; empty when it does."""
    labels = {row.foundation for row in rows}
    if "" in labels:
        return "the vignettes have no labels"
    if len(rows) < LEAST:
        return f"there are fewer than {LEAST} vignettes"
    return "" if len(labels) > 1 else f"all vignettes are labelled {', '.join(labels)}"


def agreement(scores: Sequence[VignetteScore]) -> Agreement:
    """Over all vignettes; one that could not be answered agrees with nothing."""
    if why := why_no_agreement(scores):
        return Agreement(why=why)
    n = len(scores)
    agree = sum(row.likeliest == row.foundation for row in scores)
    chance = max(Counter(row.foundation for row in scores).values()) / n
    return Agreement(agree / n, *wilson(agree, n), chance)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% interval of a share. Source: Wilson, 1927, Journal of the American Statistical Association 22."""
    share, z2 = successes / n, Z_95**2 / n
    middle, half = share + z2 / 2, Z_95 * math.sqrt((share * (1 - share) + z2 / 4) / n)
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
