"""`export`: a run's tables, adapters and vectors as files that other tools open."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer_heal import data, models
from steer_heal.cli import hub
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Out
from steer_heal.config import SettingsError, check_run_id
from steer_heal.engine.run_index import EXAMPLE
from steer_heal.heal import cards
from steer_heal.heal.adapters import adapter_name, saved_rounds
from steer_heal.heal.merging import merge
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder
from steer_heal.runs.store import Store

EXAMPLE_COMPLETIONS = 24
"""How many completions of each round the shipped example keeps."""
EXAMPLE_LACKS = ("per_vignette", "pid", "host", "ids")


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when everything was written."""
    folder = LocalProcesses(args.runs).folder(args.run_id)
    if args.push:
        hub.check(args.push)
    if args.merged:
        files = write_merged(folder, Path(args.merged), args.rounds)
    elif args.example:
        files = write_example(folder, Path(args.out) if args.out else EXAMPLE)
    else:
        store = Store(args.db)
        store.ingest(folder.run_id, events.read(folder.log))
        files = write(folder, store, Path(args.out or f"exports/{check_run_id(args.run_id)}"), args.format)
    address = None
    if args.push:
        address = hub.push(
            Path(args.merged) if args.merged else last_adapter(folder), args.push, public=args.public
        )
    out.text(*(str(file) for file in files), *([address] if address else []))
    names = [str(file) for file in files]
    out.document({"command": "export", "run_id": folder.run_id, "files": names, "pushed": address})
    return 0


def last_adapter(folder: RunFolder) -> Path:
    """The folder of the last finished round's adapter. Raises: `SettingsError` when there is none."""
    rounds = saved_rounds(folder.path / "adapters")
    if not rounds:
        raise SettingsError(f"{folder.run_id} has no finished round yet: nothing to push.")
    return folder.path / "adapters" / adapter_name(rounds[-1])


def write_merged(folder: RunFolder, target: Path, rounds: int | None = None) -> list[Path]:
    """The run's base with its rounds merged, and a model card. Raises: `SettingsError`."""
    settings = folder.settings()
    finished = [
        number for number in saved_rounds(folder.path / "adapters") if rounds is None or number <= rounds
    ]
    merge(models.load(settings.model), folder.path / "adapters", target, rounds=rounds)
    last, log = finished[-1], events.read(folder.log).events
    measured = {
        event.data["stage"]: event.data
        for event in log
        if event.kind == "profile" and (event.round or 0) in (0, last)
    }
    facts = next((event.data for event in log if event.kind == "round" and event.round == last), {})
    text = cards.card(settings, data.trait(settings.trait), last, measured, facts, merged=True)
    cards.write(target, text)
    return sorted(path for path in target.rglob("*") if path.is_file())


def write(folder: RunFolder, store: Store, target: Path, kind: str) -> list[Path]:
    """Everything of the run; gives the files. Raises: `SettingsError` when the folder cannot be used."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"{target} is not empty: choose a new folder.")
    try:
        tables = target / "tables"
        tables.mkdir(parents=True)
        store.export(tables, [folder.run_id], kind)
        for name in ("adapters", "vectors"):
            if (folder.path / name).is_dir():
                shutil.copytree(folder.path / name, target / name)
        for name in ("config.json", "events.jsonl"):
            shutil.copy(folder.path / name, target / name)
    except OSError as error:
        raise SettingsError(
            f"Cannot write {target} ({error.strerror or error}): choose another folder."
        ) from error
    return sorted(path for path in target.rglob("*") if path.is_file())


def write_example(folder: RunFolder, target: Path) -> list[Path]:
    """The run's log without progress, what single vignettes and prompts gave, and most completions; and its
    settings."""
    target.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(line, ensure_ascii=False, allow_nan=False) for line in _trimmed(folder)]
    log, config = target / "events.jsonl", target / "config.json"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(folder.path / "config.json", config)
    return [config, log]


def _trimmed(folder: RunFolder) -> Iterator[dict[str, Any]]:
    kept = [
        event
        for event in events.read(folder.log).events
        if event.kind not in ("progress", "heartbeat", "held_out")
        and not (event.kind == "completion" and event.data["index"] >= EXAMPLE_COMPLETIONS)
    ]
    for seq, event in enumerate(kept):
        line = asdict(event) | {"seq": seq}
        line["data"] = {key: value for key, value in event.data.items() if key not in EXAMPLE_LACKS}
        yield line
