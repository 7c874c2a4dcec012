"""Which multiplier of the alphas a round's data are made at: pure, from the survival of probes so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def next_probe(
    ladder: Sequence[float], survival: Mapping[float, float], start: float, target: float
) -> float | None:
    """The multiplier to probe next; None when the choice is made.

    From the rung nearest to `start`: while a probe fails, one rung down; when the first one holds, up until
    one fails. No rung is probed twice, so there are at most as many probes as rungs.
    """
    rungs = sorted(set(ladder))
    place = min(range(len(rungs)), key=lambda index: abs(rungs[index] - start))
    if rungs[place] not in survival:
        return rungs[place]
    step = 1 if survival[rungs[place]] >= target else -1
    while 0 <= place < len(rungs) and rungs[place] in survival:
        if (survival[rungs[place]] >= target) != (step > 0):
            return None
        place += step
    return rungs[place] if 0 <= place < len(rungs) else None


def chosen(survival: Mapping[float, float], target: float) -> float:
    """The largest multiplier whose probe held; the least one where none did."""
    held = [scale for scale, share in survival.items() if share >= target]
    return max(held) if held else min(survival)
