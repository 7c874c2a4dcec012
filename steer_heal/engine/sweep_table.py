"""What the runs of a sweep come to: means and spreads over seeds, and paired differences. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

from steer_heal.config.axes import SEED, in_words
from steer_heal.records import SweepCell, SweepDifference, SweepGroup, SweepTable

READINGS = (
    "movement", "social_norms", "care", "coherence", "retention", "relevance", "perplexity_ratio",
    "neutral_kl",
)  # fmt: skip
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5th percentile of Student's t with 1, 2, ... degrees of freedom; beyond, the last, a little too wide."""

Row = Mapping[str, Any]


def table(cells: Sequence[SweepCell], rows: Sequence[dict[str, Any]]) -> SweepTable:
    """All of a sweep, from its cells and its rows of the view `sweep_cells`."""
    last = last_rounds(rows)
    return SweepTable(tuple(cells), tuple(rows), tuple(last), tuple(groups(last)), tuple(differences(last)))


def last_rounds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run that finished the row of its last round, from the rows of the view `sweep_cells`."""
    last = {row["run_id"]: row for row in rows if row["status"] == "finished" and row["round"]}
    return list(last.values())


def groups(rows: Sequence[Row]) -> list[SweepGroup]:
    """By setting, in the order of the rows."""
    return [_group(values, list(by_seed.values())) for values, by_seed in _by_setting(rows)]


def differences(rows: Sequence[Row]) -> list[SweepDifference]:
    """Of every two settings that differ in one axis, all readings that both have."""
    found = []
    for (one, ours), (other, theirs) in combinations(_by_setting(rows), 2):
        differ = [name for name in one if one[name] != other[name]]
        seeds = sorted(set(ours) & set(theirs))
        if len(differ) != 1 or not seeds:
            continue
        for reading in READINGS:
            pairs = [(ours[seed][reading], theirs[seed][reading]) for seed in seeds]
            apart = [after - before for before, after in pairs if before is not None and after is not None]
            if apart:
                found.append(SweepDifference(differ[0], one, other, reading, *_interval(apart)))
    return found


def _by_setting(rows: Sequence[Row]) -> list[tuple[dict[str, Any], dict[int, Row]]]:
    """Each setting without its seed, and its rows by seed."""
    found: dict[str, tuple[dict[str, Any], dict[int, Row]]] = {}
    for row in rows:
        values = {name: value for name, value in row["varied"].items() if name != SEED}
        found.setdefault(json.dumps(values), (values, {}))[1][row["seed"]] = row
    return list(found.values())


def _group(values: dict[str, Any], rows: Sequence[Row]) -> SweepGroup:
    known = {name: [row[name] for row in rows if row[name] is not None] for name in READINGS}
    return SweepGroup(
        values,
        tuple(row["seed"] for row in rows),
        {name: fmean(some) if some else None for name, some in known.items()},
        {name: stdev(some) if len(some) > 1 else None for name, some in known.items()},
    )


def _interval(apart: Sequence[float]) -> tuple[int, float, float | None, float | None]:
    n, mean = len(apart), fmean(apart)
    if n == 1:
        return n, mean, None, None
    half = T_95[min(n - 1, len(T_95)) - 1] * stdev(apart) / math.sqrt(n)
    return n, mean, mean - half, mean + half


def told(values: Mapping[str, Any]) -> str:
    """A setting in words; "all" where nothing but the seed varies."""
    return in_words(dict(values)) or "all"
