"""`results`: the runs of runs.duckdb, grouped by model and trait."""

from dataclasses import asdict
from itertools import groupby

from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, number, table
from steer_heal.config import SettingsError
from steer_heal.engine.run_index import RunIndex
from steer_heal.records import MapNode, RunRow
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store

MEASURED = (
    number("care", "Care"),
    number("social_norms", "SocialNorms"),
    number("agreement", "agreement", ".2f"),
    number("coherence"),
    number("retention", "retention", ".2f"),
)


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when the store could be read."""
    index = RunIndex(LocalProcesses(args.runs, at_once=0), Store(args.db), every_s=0.0)
    rows = index.rows()
    if index.message():
        raise SettingsError(index.message())
    if args.run_id is not None:
        rows = [row for row in rows if row.run_id == args.run_id]
        if not rows:
            raise SettingsError(f"There is no run {args.run_id!r}: see `python -m steer_heal results`.")
    nodes = index.map([row.run_id for row in rows])
    if args.run_id is not None:
        _show_stages(out, nodes)
    else:
        _show_runs(out, rows, nodes)
    documents = [asdict(row) for row in rows]
    out.document({"command": "results", "runs": documents, "rows": [asdict(node) for node in nodes]})
    return 0


def _show_runs(out: Out, rows: list[RunRow], nodes: list[MapNode]) -> None:
    if not rows:
        out.text("No runs yet: start one with `python -m steer_heal heal`.")
    newest = {node.run_id: node for node in nodes}
    columns = [
        Column("run_id", "run", width=24),
        number("seed", "seed", "d", 4),
        Column("status", "status", width=11),
        Column("rounds_done", "rounds"),
        Column("stage", "stage", width=7),
        *MEASURED,
        Column("name", "name"),
        Column("message", "headline"),
    ]

    def group_of(row: RunRow) -> tuple[str, str]:
        return row.model, row.trait

    for (model, trait), group in groupby(sorted(rows, key=group_of), key=group_of):
        shown = []
        for row in group:
            node = newest.get(row.run_id)
            last = {} if node is None else asdict(node)
            name = f"{row.name} (example)" if row.is_example else row.name
            shown.append(
                last
                | asdict(row)
                | {"stage": last.get("stage"), "name": name, "rounds_done": f"{row.round} of {row.rounds}"}
            )
        out.text(f"{model}, {trait}", table(columns, shown), "")


def _show_stages(out: Out, nodes: list[MapNode]) -> None:
    columns = [
        number("round", "round", "d"),
        Column("stage", "stage"),
        number("alpha", "alpha", ".2f"),
        *MEASURED,
    ]
    out.text(table(columns, [asdict(node) for node in nodes]))
    for node in nodes:
        if node.stage == "base" and (said := node.worth.sentence(node.frame or "")):
            out.text(f"base: {said}")
