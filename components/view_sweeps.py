"""Sweeps of runs as HTML, pure. Everything a person wrote goes through `esc`."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from components.view import duration, esc, heading, number, progress, table, tr
from components.view_runs import when
from steer_heal.config import LOCAL, RunSweep, axes
from steer_heal.config.axes import in_words
from steer_heal.records import RunRow, SweepDifference, SweepForecast, SweepGroup, SweepTable

GOING = ("queued", "running", "paused")
RESUMABLE = ("paused", "cancelled", "failed", "interrupted", "none")
TITLES = {
    "movement": "movement", "social_norms": "SocialNorms", "care": "Care", "coherence": "coherence",
    "retention": "retention", "relevance": "relevance", "perplexity_ratio": "perplexity / base's",
    "neutral_kl": "damage: neutral KL, nats",
}  # fmt: skip


def takes(told: SweepForecast, address: str) -> str:
    """What a sweep would take, in words. `address`: where its runs go."""
    n = f"{told.runs} runs" if told.runs != 1 else "1 run"
    where = "" if address == LOCAL else f" on {address}"
    long = "not known, as none of this model and preset has finished"
    if told.seconds is not None:
        long = f"about {duration(told.seconds)}, by {told.known} of this model and preset that finished"
    held = "not known, as a model is not on this machine"
    if told.n_bytes is not None:
        held = f"up to {told.n_bytes / 1e9:.1f} GB a run"
    room = "" if told.left is None else f"; {told.left / 1e9:.1f} GB are free"
    says = f"{n}, {told.at_once} at a time{where}. Time: {long}. Memory: {held}{room}."
    return f'<div class="sh-note">{esc(says)}{skipped(told.skipped)}</div>'


def skipped(reasons: Sequence[str]) -> str:
    """The cells that cannot run, and why; nothing where all can."""
    lines = "".join(f"<li>{esc(reason)}</li>" for reason in reasons)
    return f"<details><summary>{len(reasons)} cannot run</summary><ul>{lines}</ul></details>" if lines else ""


def listed(
    sweeps: Sequence[RunSweep],
    runs: Sequence[RunRow],
    shown: Collection[str],
    opened: str | None,
    address: str,
) -> str:
    """The sweeps: what varies, how the runs stand, what can be done; nothing where there are none.
    `address`: where runs go now."""
    if not sweeps:
        return ""
    by_id = {run.run_id: run for run in runs}
    about = "tick one to put all its runs on the map; click what it varies to compare them"
    rows = (_row(sweep, by_id, shown, sweep.sweep_id == opened, address) for sweep in sweeps)
    return heading("Sweeps", about) + table(("Map", "Varies", "Runs", "Started", "Actions"), rows)


def _row(
    sweep: RunSweep, runs: Mapping[str, RunRow], shown: Collection[str], opened: bool, address: str
) -> str:
    here = [run_id for run_id in sweep.run_ids if run_id in runs]
    stand = Counter("skipped" if c.skipped else "none" for c in sweep.cells if c.run_id not in runs)
    stand.update(runs[run_id].status for run_id in here)
    told, name = axes.told(sweep.axes), esc(sweep.sweep_id)
    where = "" if sweep.cluster == LOCAL else f" · on {esc(sweep.cluster)}"

    def about(label: str) -> str:
        return f'data-run="{name}" aria-label="{label} {esc(told)}"'

    checked = bool(here) and set(here) <= set(shown)
    acts = []
    if any(stand[one] for one in GOING):
        sure = "Cancel the runs of this sweep that have not ended?"
        acts.append(("stop-sweep", "Stop", f'data-sure="{sure}"'))
    if any(stand[one] for one in RESUMABLE):
        elsewhere = "Resume here" if address == LOCAL else "Resume on the cluster"
        acts.append(("resume-sweep", "Resume" if sweep.cluster == address else elsewhere, ""))
    cells = (
        f'<button class="sh-check" role="checkbox" aria-checked="{str(checked).lower()}" '
        f'data-action="show-sweep" {about("On the map:")}></button>',
        f'<button class="sh-link" data-action="open-sweep" data-run="{name}" aria-expanded='
        f'"{str(opened).lower()}">{esc(told)}</button><div class="sh-dim">{name}{where}</div>',
        progress(sum(runs[run_id].progress for run_id in here) / max(1, len(here) + stand["none"]))
        + f'<span class="sh-dim">{esc(", ".join(f"{n} {one}" for one, n in stand.items()))}</span>',
        when(sweep.at),
        " ".join(
            f'<button class="sh-button" data-action="{action}" {more} {about(label)}>{label}</button>'
            for action, label, more in acts
        ),
    )
    return f'<tr data-run="{name}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def compared(sweep: RunSweep, found: SweepTable) -> str:
    """A sweep's settings by their numbers on the chart, their differences, and how each cell stands."""
    rows = (
        tr(*map(esc, (in_words(cell.values), cell.run_id, cell.status, cell.message))) for cell in found.cells
    )
    cells = _folded(f"{len(found.cells)} cells", ("Cell", "Run", "Status", ""), rows)
    title = f'<div class="sh-round"><h3>{esc(axes.told(sweep.axes))}</h3></div>'
    if not found.groups:
        return f'{title}<div class="sh-empty">No run has finished yet: nothing to compare.</div>{cells}'
    return title + _groups(found.groups) + _differences(found.differences) + cells


def _groups(groups: Sequence[SweepGroup]) -> str:
    names = list(groups[0].mean)
    titles = ("", "Setting", "Seeds", *(esc(TITLES.get(name, name)) for name in names))
    rows = (
        tr(
            f"<b>{place}</b>", esc(in_words(group.values) or "all"), len(group.seeds),
            *(_around(group.mean[name], group.spread[name]) for name in names),
        )
        for place, group in enumerate(groups, 1)
    )  # fmt: skip
    about = "Mean ± standard deviation over seeds, of the last round of each run that finished."
    return f'<p class="sh-dim">{about}</p><div class="sh-wide">{table(titles, rows)}</div>'


def _around(mean: float | None, spread: float | None) -> str:
    return number(mean) + ("" if spread is None else f" ± {number(spread)}")


def _differences(apart: Sequence[SweepDifference]) -> str:
    rows = (
        tr(
            esc(in_words(one.one)), esc(in_words(one.other)), esc(TITLES.get(one.reading, one.reading)),
            one.n, f"{one.mean:+.3f}", _interval(one), esc(one.verdict),
        )
        for one in apart
    )  # fmt: skip
    names = ("Of", "And", "Reading", "Seeds", "Second minus first", "95% interval", "")
    return _folded("Differences, seed by seed; each interval for itself", names, rows) if apart else ""


def _interval(one: SweepDifference) -> str:
    return "–" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}"


def _folded(about: str, names: Sequence[str], rows: Iterable[str]) -> str:
    return f'<details><summary>{about}</summary><div class="sh-scroll">{table(names, rows)}</div></details>'
