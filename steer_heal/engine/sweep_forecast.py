"""What a sweep of runs would take: time by what finished runs took, memory as it is reckoned. Pure."""

from collections.abc import Sequence
from statistics import median

from steer_heal.config import HealSettings
from steer_heal.records import RunRow, SweepForecast

Kind = tuple[str, str]


def forecast(
    wanted: Sequence[HealSettings],
    skipped: Sequence[str],
    runs: Sequence[RunRow],
    sizes: Sequence[int | None],
    *,
    at_once: int,
    left: int | None,
) -> SweepForecast:
    """Of runs with the settings `wanted`, by the `runs` of the same model and preset that finished: the
    median time of a round in them. `sizes`: bytes of memory that each needs, where that is known."""
    kinds = {(settings.model, settings.preset) for settings in wanted}
    ended = [run for run in runs if run.status == "finished" and not run.is_example and _kind(run) in kinds]
    paces: dict[Kind, list[float]] = {}
    for run in ended:
        if run.started_at is not None and run.finished_at is not None and run.round:
            paces.setdefault(_kind(run), []).append((run.finished_at - run.started_at) / run.round)
    seconds = None
    if wanted and paces.keys() == kinds:
        pace = {kind: median(found) for kind, found in paces.items()}
        work = sum(settings.rounds * pace[settings.model, settings.preset] for settings in wanted)
        seconds = work / min(max(1, at_once), len(wanted))
    known = [size for size in sizes if size is not None]
    largest = max(known) if known and len(known) == len(sizes) else None
    return SweepForecast(len(wanted), tuple(skipped), at_once, len(ended), seconds, largest, left)


def _kind(run: RunRow) -> Kind:
    return run.model, run.preset
