"""Which multiplier of the alphas a round's data are made at: pure, from the survival of probes so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_probe(
    ladder: Sequence[float], survival: Mapping[float, float], start: float, target: float
) -> float | None:
    """The multiplier to probe next; None when the choice is made.

    From the rung nearest to `start`: while a probe fails, one rung down; when the first one holds, the next
    one up and no further, since a student that was just healed breaks again where it is pushed hard at once.
    No rung is probed twice, so there are at most as many probes as rungs.
    """
    rungs = sorted(set(ladder))
    place = min(range(len(rungs)), key=lambda index: abs(rungs[index] - start))
    if survival.get(rungs[place], -1.0) >= target:
        return next((rung for rung in rungs[place + 1 : place + 2] if rung not in survival), None)
    for rung in reversed(rungs[: place + 1]):
        if rung not in survival:
            return rung
        if survival[rung] >= target:
            return None
    return None


def chosen(survival: Mapping[float, float], target: float) -> float:
    """The largest multiplier whose probe held; the least one where none did."""
    held = [scale for scale, share in survival.items() if share >= target]
    return max(held) if held else min(survival)
