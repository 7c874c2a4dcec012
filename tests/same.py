"""What two runs of the same settings come to: nothing may differ, however often one was cut."""

import hashlib
import json
from pathlib import Path
from typing import Any

from steer_heal.runs import events

VOID = ("queued", "started", "interrupted", "paused", "continued", "progress", "cancelled", "failed")
CLOCKS = {"seconds"}


def outcome(path: Path) -> dict[str, Any]:
    """By file: a run's events without clocks and without what a resume made void, and a hash of each vector
    and adapter."""
    kept: list[tuple[str, int | None, dict[str, Any]]] = []
    for event in events.read(path / "events.jsonl").events:
        if event.kind == "resumed":
            whole_base = any(kind == "answers" and not round_ for kind, round_, _ in kept)
            kept = [row for row in kept if (row[1] or 0) <= event.data["round"] and (row[1] or whole_base)]
        elif event.kind not in VOID:
            data = {key: value for key, value in event.data.items() if key not in CLOCKS}
            kept.append((event.kind, event.round, data))
    files = sorted([*path.glob("vectors/*.safetensors"), *path.glob("adapters/*/*.safetensors")])
    return {"events.jsonl": kept, **{str(file.relative_to(path)): digest(file) for file in files}}


def digest(file: Path) -> str:
    """Of the bytes, the header's in sorted order: safetensors writes metadata in an order that varies."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8 : 8 + length]), sort_keys=True).encode()
    return hashlib.sha256(header + whole[8 + length :]).hexdigest()


def differing(one: Path, other: Path) -> list[str]:
    """The names of what two runs' folders have not in common, bit for bit."""
    ours, theirs = outcome(one), outcome(other)
    assert len(ours) > 1, "nothing was made"
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
