"""Sweeps of runs as HTML, pure. Everything a person wrote goes through `esc`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from components.view import duration, esc, heading, number, progress
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
    head = "".join(f"<th>{name}</th>" for name in ("Map", "Varies", "Runs", "Started", "Actions"))
    body = "".join(_row(sweep, by_id, shown, sweep.sweep_id == opened, address) for sweep in sweeps)
    table = f'<table class="sh-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return heading("Sweeps", about) + table


def _row(
    sweep: RunSweep, runs: Mapping[str, RunRow], shown: Collection[str], opened: bool, address: str
) -> str:
    here = [run_id for run_id in sweep.run_ids if run_id in runs]
    stand = Counter("skipped" if c.skipped else "none" for c in sweep.cells if c.run_id not in runs)
    stand.update(runs[run_id].status for run_id in here)
    told, name = axes.told(sweep.axes), esc(sweep.sweep_id)

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
        f'"{str(opened).lower()}">{esc(told)}</button><div class="sh-dim">{name}{_where(sweep)}</div>',
        progress(sum(runs[run_id].progress for run_id in here) / max(1, len(here) + stand["none"]))
        + f'<span class="sh-dim">{esc(", ".join(f"{n} {one}" for one, n in stand.items()))}</span>',
        when(sweep.at),
        " ".join(
            f'<button class="sh-button" data-action="{action}" {more} {about(label)}>{label}</button>'
            for action, label, more in acts
        ),
    )
    return f'<tr data-run="{name}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _where(sweep: RunSweep) -> str:
    return "" if sweep.cluster == LOCAL else f" · on {esc(sweep.cluster)}"


def compared(sweep: RunSweep, table: SweepTable) -> str:
    """A sweep's settings by their numbers on the chart, their differences, and how each cell stands."""
    rows = "".join(
        f"<tr><td>{esc(in_words(cell.values))}</td><td>{esc(cell.run_id)}</td><td>{esc(cell.status)}</td>"
        f"<td>{esc(cell.message)}</td></tr>"
        for cell in table.cells
    )
    cells = _folded(f"{len(table.cells)} cells", ("Cell", "Run", "Status", ""), rows)
    title = f'<div class="sh-round"><h3>{esc(axes.told(sweep.axes))}</h3></div>'
    if not table.groups:
        return f'{title}<div class="sh-empty">No run has finished yet: nothing to compare.</div>{cells}'
    return title + _groups(table.groups) + _differences(table.differences) + cells


def _groups(groups: Sequence[SweepGroup]) -> str:
    names = list(groups[0].mean)
    head = "".join(f"<th>{esc(n)}</th>" for n in ("", "Setting", "Seeds", *(TITLES.get(n, n) for n in names)))
    body = "".join(
        f"<tr><td><b>{place}</b></td><td>{esc(in_words(group.values) or 'all')}</td>"
        f"<td>{len(group.seeds)}</td>"
        + "".join(f"<td>{_around(group.mean[name], group.spread[name])}</td>" for name in names)
        + "</tr>"
        for place, group in enumerate(groups, 1)
    )
    about = "Mean ± standard deviation over seeds, of the last round of each run that finished."
    table = f'<table class="sh-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<p class="sh-dim">{about}</p><div class="sh-wide">{table}</div>'


def _around(mean: float | None, spread: float | None) -> str:
    return number(mean) + ("" if spread is None else f" ± {number(spread)}")


def _differences(apart: Sequence[SweepDifference]) -> str:
    rows = "".join(
        f"<tr><td>{esc(in_words(one.one))}</td><td>{esc(in_words(one.other))}</td>"
        f"<td>{esc(TITLES.get(one.reading, one.reading))}</td><td>{one.n}</td><td>{one.mean:+.3f}</td>"
        f"<td>{_interval(one)}</td><td>{esc(one.verdict)}</td></tr>"
        for one in apart
    )
    names = ("Of", "And", "Reading", "Seeds", "Second minus first", "95% interval", "")
    return _folded("Differences, seed by seed; each interval for itself", names, rows) if apart else ""


def _interval(one: SweepDifference) -> str:
    return "–" if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}"


def _folded(about: str, names: Sequence[str], rows: str) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<table class="sh-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<details><summary>{about}</summary><div class="sh-scroll">{table}</div></details>'
