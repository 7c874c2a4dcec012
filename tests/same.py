"""What differs between two runs of the same settings: nothing may."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file

from steer_heal.runs import events


def measured(log: Path) -> list[tuple[str, int | None, object]]:
    """The last profile of each round and stage, and what each round made."""
    found = {}
    for event in events.read(log).events:
        if event.kind == "profile":
            found["profile", event.round, event.data["stage"]] = event.data["p"]
        elif event.kind == "completion":
            found["completion", event.round, event.data["index"]] = event.data["text"]
    return [(*key, value) for key, value in found.items()]  # type: ignore[misc]


def differing(one: Path, other: Path) -> list[str]:
    """The names of what two runs' folders have not in common, bit for bit: what was measured and written, and
    each tensor of their adapters and vectors."""
    ours, theirs = (sorted(map(repr, measured(folder / "events.jsonl"))) for folder in (one, other))
    found = [] if ours == theirs and ours else ["events.jsonl"]
    tensors, again = (
        {
            f"{path.relative_to(folder)}:{key}": tensor
            for path in (*folder.rglob("round-*/*.safetensors"), *folder.glob("vectors/*.safetensors"))
            for key, tensor in load_file(path).items()
        }
        for folder in (one, other)
    )
    names = sorted({*tensors, *again})
    assert names, "neither has made anything"
    return found + [
        name for name in names
        if name not in tensors or name not in again or tensors[name].tobytes() != again[name].tobytes()
    ]  # fmt: skip
