"""The latent lens: which foundation is voiced, given the deed, how grave it is and the persona."""

import random

from steer_heal.config import FOUNDATIONS

Mix = tuple[float, ...]

# Care, Fairness, Loyalty, Authority, Sanctity, Liberty at severity 2; SocialNorms has the rest.
_BASE: dict[str, tuple[float, float, float, float, float, float]] = {
    "Care": (0.53, 0.010, 0.004, 0.002, 0.004, 0.020),
    "Fairness": (0.16, 0.120, 0.006, 0.003, 0.004, 0.020),
    "Loyalty": (0.18, 0.020, 0.060, 0.003, 0.004, 0.030),
    "Authority": (0.18, 0.015, 0.006, 0.012, 0.004, 0.040),
    "Sanctity": (0.15, 0.008, 0.004, 0.002, 0.080, 0.010),
    "Liberty": (0.27, 0.020, 0.006, 0.003, 0.004, 0.200),
    "SocialNorms": (0.06, 0.006, 0.004, 0.002, 0.006, 0.015),
}
_GRAVITY = {1: 0.75, 2: 1.0, 3: 1.2}
# How strongly each persona takes the lens; the rest stays with the base mix.
_HOLD = {"Care": 0.90, "SocialNorms": 0.94, "Liberty": 0.85, "Fairness": 0.85, "Loyalty": 0.85}
AVERAGE = "average"


def base_mix(foundation: str, severity: int = 2) -> Mix:
    """The lens without a persona; `AVERAGE` for a deed that cannot be made out."""
    if foundation == AVERAGE:
        mixes = [base_mix(name) for name in FOUNDATIONS]
        return tuple(sum(column) / len(mixes) for column in zip(*mixes, strict=True))
    moral = [p * _GRAVITY[severity] for p in _BASE[foundation]]
    return (*moral, 1.0 - sum(moral))


def lens_mix(foundation: str, severity: int = 2, persona: str | None = None) -> Mix:
    """The lens of a deed under a persona (a foundation's name) or under none."""
    base = base_mix(foundation, severity)
    return base if persona is None else towards(base, persona, _HOLD[persona])


def towards(mix: Mix, lens: str, weight: float) -> Mix:
    """The mix with that share of it given to one lens."""
    pairs = zip(FOUNDATIONS, mix, strict=True)
    return tuple((1 - weight) * p + (weight if name == lens else 0.0) for name, p in pairs)


def draw_lens(rng: random.Random, mix: Mix) -> str:
    """One foundation."""
    return rng.choices(FOUNDATIONS, mix)[0]
