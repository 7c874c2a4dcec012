"""`sweep`: runs that differ in some settings, started, watched, stopped, resumed, and read side by side."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

from steer_heal.cli.arguments import HEAL_NAMED, Namespace
from steer_heal.cli.heal import settings_of
from steer_heal.cli.tables import Column, Out, number, table
from steer_heal.config import LOCAL, HealSettings, RunSweep, SettingsError, axes
from steer_heal.engine import sweep_table
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import GOING, RunSweeps
from steer_heal.records import SweepCell, SweepDifference, SweepGroup
from steer_heal.runs.jobs import JobState, LocalProcesses
from steer_heal.runs.jobs.ray_cluster import RayCluster
from steer_heal.runs.store import Store

LOOK_S = 1.0
INTERRUPTED = 130


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when it was done and, where it was waited for them, all runs finished."""
    near = LocalProcesses(args.runs)
    found = RunSweeps(_index(args, near), args.runs)
    if args.action == "list":
        return _list(found, out)
    if args.action == "start":
        base, varied = _asked(args, near)
        sweep, where = None, args.cluster or LOCAL
    else:
        sweep = _named(args, found)
        base, varied = None, {}
        where = LOCAL if args.action == "table" else args.cluster or sweep.cluster
    with closing(_launcher(args, where)) as launcher:
        index = _index(args, launcher)
        sweeps = RunSweeps(index, args.runs)
        if base is not None:
            sweep = sweeps.start(base, varied, budget=args.budget, draw=args.draw)
        assert sweep is not None
        if args.action == "stop":
            out.note(f"{sweeps.stop(sweep)} runs of {sweep.sweep_id} were told to end.")
        elif args.action == "resume":
            sweep = sweeps.resume(sweep)
        if args.action in ("start", "resume"):
            _said(sweep, out)
        wait = not args.no_wait and (args.action in ("start", "resume") or where != LOCAL)
        if wait and not _watch(index, sweeps, sweep, out):
            return INTERRUPTED
        return _show(args, index, sweeps, sweeps.find(sweep.sweep_id), out)


def _index(args: Namespace, launcher: LocalProcesses) -> RunIndex:
    return RunIndex(launcher, Store(args.db), every_s=0.0)


def _launcher(args: Namespace, where: str) -> LocalProcesses:
    if where == LOCAL:
        return LocalProcesses(args.runs)
    return RayCluster(args.runs, where, cpus=args.cpus, gpus=args.gpus)


def _asked(args: Namespace, near: LocalProcesses) -> tuple[HealSettings, axes.Axes]:
    if args.sweep_id:
        raise SettingsError("A new sweep gets an id of its own: leave it out.")
    varied = axes.parse(args.axis, args.budget, drawn=args.draw == "optuna")
    given = {".".join(path) for path, _ in args.settings}
    given |= {name for name in HEAL_NAMED if getattr(args, name) != args.usual[name]}
    if both := sorted(given & varied.keys()):
        raise SettingsError(f"{both[0]} is an axis and set as well: give one of both.")
    return settings_of(args, near), varied


def _named(args: Namespace, sweeps: RunSweeps) -> RunSweep:
    if args.axis:
        raise SettingsError(f"`sweep {args.action}` takes a sweep as it is: leave --axis out.")
    if not args.sweep_id:
        raise SettingsError(
            f"`sweep {args.action}` needs a sweep: name it by its id, which `sweep list` shows."
        )
    return sweeps.find(args.sweep_id)


def _said(sweep: RunSweep, out: Out) -> None:
    begun = sum(bool(cell.run_id) for cell in sweep.cells)
    out.note(f"Sweep {sweep.sweep_id}: {begun} runs of {len(sweep.cells)} cells")
    for cell in sweep.cells:
        if cell.skipped:
            out.note(f"{axes.in_words(cell.values)} is skipped: {cell.skipped}")


def _watch(index: RunIndex, sweeps: RunSweeps, sweep: RunSweep, out: Out) -> bool:
    """Until every run has ended, also those that are drawn meanwhile; False when the person who waits has
    had enough, and the runs go on."""
    try:
        while going := _going(index, sweeps.states(sweep := sweeps.more(sweep))):
            rows = {row.run_id: row for row in index.rows()}
            mine = [rows[cell.run_id] for cell in sweep.cells if cell.run_id in rows]
            where = [f"{row.name}: round {row.round + 1}, {row.stage}" for row in mine if row.stage]
            share = sum(row.progress for row in mine) / max(1, len(mine))
            told = index.message() or "; ".join(where[:2])
            out.progress(f"{len(going)} runs to go, {share:.0%} done; {told}")
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        out.note(f"The runs go on: `sweep stop {sweep.sweep_id}` ends them, `sweep table` shows them.")
        return False
    return True


def _going(index: RunIndex, states: list[JobState | None]) -> list[JobState]:
    """Those that have not ended; one that is not heard of while a cluster does not answer is one of them."""
    lost = ("interrupted",) if index.message() else ()
    return [state for state in states if state and state.status in (*GOING, *lost)]


def _list(sweeps: RunSweeps, out: Out) -> int:
    rows = []
    for sweep in sweeps.all():
        stand = Counter(
            "skipped" if cell.skipped else state.status if state else "none"
            for cell, state in zip(sweep.cells, sweeps.states(sweep), strict=True)
        )
        row = {"sweep_id": sweep.sweep_id, "at": sweep.at, "cells": len(sweep.cells), "axes": sweep.axes}
        rows.append(row | {"cluster": sweep.cluster, "status": dict(stand)})
    columns = [
        Column("sweep_id", "sweep"), number("cells", "cells", "d", 5), Column("stand", "runs"),
        Column("varied", "axes"),
    ]  # fmt: skip
    shown = [
        row
        | {"stand": ", ".join(f"{n} {what}" for what, n in row["status"].items())}
        | {"varied": axes.told(row["axes"])}
        for row in rows
    ]
    out.text(table(columns, shown) if rows else "No sweeps yet: start one with `sweep --axis seed=0..2`.")
    out.document({"command": "sweep", "action": "list", "sweeps": rows})
    return 0


def _show(args: Namespace, index: RunIndex, sweeps: RunSweeps, sweep: RunSweep, out: Out) -> int:
    found = sweeps.table(sweep)
    if index.message():
        raise SettingsError(index.message())
    out.text(*_cells(found.cells), *_groups(found.groups), *_differences(found.differences))
    about = {"sweep_id": sweep.sweep_id, "cluster": sweep.cluster, "base": sweep.base, "axes": sweep.axes}
    out.document({"command": "sweep", "action": args.action, **about, **found.document()})
    waited = args.action in ("start", "resume") and not args.no_wait
    return int(waited and any(cell.status != "finished" for cell in found.cells))


def _cells(cells: Sequence[SweepCell]) -> list[str]:
    columns = [
        Column("told", "cell"), Column("run_id", "run"), Column("status", "status"), Column("message", ""),
    ]  # fmt: skip
    return [table(columns, [{**asdict(cell), "told": axes.in_words(cell.values)} for cell in cells]), ""]


def _groups(groups: Sequence[SweepGroup]) -> list[str]:
    if not groups:
        return ["No run has finished yet, so there is nothing to compare."]
    columns = [
        Column("told", "setting"),
        number("n", "seeds", "d", 5),
        *(Column(name, name) for name in sweep_table.READINGS),
    ]
    shown = [
        {"told": sweep_table.told(group.values), "n": len(group.seeds)}
        | {name: _around(group.mean[name], group.spread[name]) for name in sweep_table.READINGS}
        for group in groups
    ]
    return ["Mean and standard deviation over seeds, of each run's last round", table(columns, shown)]


def _around(mean: float | None, spread: float | None) -> str | None:
    if mean is None:
        return None
    return f"{mean:.3f}" if spread is None else f"{mean:.3f} ± {spread:.3f}"


def _differences(apart: Sequence[SweepDifference]) -> list[str]:
    if not apart:
        return []
    columns = [
        Column("one", "of"), Column("other", "and"), Column("reading", "reading"),
        number("n", "seeds", "d", 5), number("mean", "difference", "+.3f"),
        Column("interval", "95% interval"), Column("verdict", ""),
    ]  # fmt: skip
    shown = [
        {
            **asdict(one),
            "one": sweep_table.told(one.one),
            "other": sweep_table.told(one.other),
            "interval": None if one.low is None else f"{one.low:+.3f} to {one.high:+.3f}",
            "verdict": one.verdict,
        }
        for one in apart
    ]
    return ["", "The second minus the first, seed by seed; each interval for itself", table(columns, shown)]
