"""`store`: the index of the runs as a file: described, rebuilt from the logs, copied, written as tables."""

import tempfile
from dataclasses import asdict
from pathlib import Path

from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, number, table
from steer_heal.config import SettingsError
from steer_heal.engine.run_index import RunIndex
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store, keeping


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when it was done."""
    out.document({"command": "store", "action": args.action, **ACTIONS[args.action](args, out)})
    return 0


def info(args: Namespace, out: Out) -> dict:
    """Schema, DuckDB versions, rows."""
    found = keeping.about(args.db)
    out.text(
        f"{found.path}: {found.bytes} bytes, schema {found.schema}, DuckDB {', '.join(found.written_by)}"
    )
    rows = [{"table": name, "rows": count} for name, count in found.rows.items()]
    out.text(table([Column("table", "table", width=20), number("rows", "rows", "d")], rows))
    return {**asdict(found), "path": str(found.path)}


def rebuild(args: Namespace, out: Out) -> dict:
    """All logs into a fresh file, then that one in the old one's place; a page that runs goes on with it."""
    path = Path(args.db)
    if not Path(args.runs).is_dir():
        raise SettingsError(f"There is no folder {args.runs}: name the one with the runs with --runs.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".rebuilding-") as folder:
        draft = Store(Path(folder) / path.name)
        index = RunIndex(LocalProcesses(args.runs, at_once=0), draft, every_s=0.0)
        rows = index.rows()
        if index.message():
            raise SettingsError(index.message())
        nodes = len(index.map([row.run_id for row in rows]))
        keeping.replace(path, draft.path)
    out.text(f"{path}: {len(rows)} runs and {nodes} points of the map, from the logs in {args.runs}")
    return {"path": str(path), "runs": len(rows), "nodes": nodes}


def snapshot(args: Namespace, out: Out) -> dict:
    """A copy as of one moment."""
    target = keeping.snapshot(args.db, _named(args, "the copy's file"))
    out.text(f"{target}: {target.stat().st_size} bytes")
    return {"path": str(target), "bytes": target.stat().st_size}


def export(args: Namespace, out: Out) -> dict:
    """Every table, all runs, as of one moment."""
    if not Path(args.db).exists():
        raise SettingsError(f"There is no {args.db} to write out.")
    folder = Path(_named(args, "a folder"))
    store = Store(args.db)
    folder.mkdir(parents=True, exist_ok=True)
    files = store.export(folder, [row.run_id for row in store.runs()], args.format)
    out.text(*(str(file) for file in files))
    return {"files": [str(file) for file in files]}


def _named(args: Namespace, what: str) -> str:
    if not args.out:
        raise SettingsError(f"`store {args.action}` needs {what}: name it with --out.")
    return args.out


ACTIONS = {"info": info, "rebuild": rebuild, "snapshot": snapshot, "export": export}
