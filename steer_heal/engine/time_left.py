"""How long a run still takes, by what its stages took: in its own rounds, else in a run like it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

EVERY_ROUND = ("extract", "calibrate", "generate", "filter", "train", "evaluate")
ALIKE = EVERY_ROUND[2:]
"""The stages of a round that take in the first as long as in the others; before them it measures more."""


def time_left(times: Sequence[Mapping[str, Any]], rounds: int, now: float) -> float | None:
    """Seconds left at `now` of a run of so many rounds; None while one of its stages has never been timed.

    `times`: the stages that began, as `Store.stage_times` gives them; of several that took a time the last
    one counts.
    """
    took = {_kind(row["round"], row["stage"]): row["seconds"] for row in times if row["seconds"] is not None}
    own = [row for row in times if row["own"]]
    steps = [(0, "base"), *((n, stage) for n in range(1, rounds + 1) for stage in EVERY_ROUND)]
    if not own or (own[-1]["round"], own[-1]["stage"]) not in steps:
        return None
    at = own[-1]
    ahead = [_kind(*step) for step in steps[steps.index((at["round"], at["stage"])) :]]
    if not took.keys() >= {*ahead}:
        return None
    return max(0.0, took[ahead[0]] - (now - at["time"])) + sum(took[kind] for kind in ahead[1:])


def _kind(round_: int, stage: str) -> tuple[bool, str]:
    """What stages that take as long have in common."""
    return round_ == 1 and stage not in ALIKE, stage
