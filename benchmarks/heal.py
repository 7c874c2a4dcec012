"""Healing against its controls: `python -m benchmarks.heal run [--cells ...] [--minutes 5]`, then `table`.

Every run is the loop itself on the bundled model, its log and adapters under build/heal/CELL-SEED. `run` ends
after about `--minutes`, between two rounds, and goes on where it was when called again; one that ended leaves
a row in build/heal/rows.jsonl. `table` writes docs/healing-table.md and docs/healing-path.png from them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.heal_table import write_table
from steer_heal import events, loop
from steer_heal.config import HealSettings, heal_settings
from steer_heal.events import EventLog
from steer_heal.models import load

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "heal"
ROWS = HOME / "rows.jsonl"
N_ANSWERS = 100
"""Free answers whose health is measured, enough to tell 2% looping from none."""

TEXT_ONLY: dict[str, Any] = {"distil": 0.0}
NEAR = {"tau": 0.1, "lam": 1.0}
CELLS: dict[str, tuple[int, dict[str, Any]]] = {
    "default": (8, {}),
    "text only, nll": (8, {"train": {**TEXT_ONLY, "divergence": "nll"}}),
    "nll": (8, {"train": {"divergence": "nll"}}),
    "text only, kl_rev rmse": (4, {"train": {**TEXT_ONLY}}),
    "unsteered text": (4, {"data": {"alphas": (0.0,), "scales": (1.0,)}, "train": TEXT_ONLY}),
    "no replay": (8, {"train": {"replay": 0.0}}),
    "base, kl_rev rmse": (4, {"train": {"reference": "base"}}),
    **{
        f"near, {kind} {how}": (4, {"train": {"divergence": kind, "aggregate": how, **NEAR}})
        for kind in ("kl_rev", "kl_fwd")
        for how in ("mean", "rmse", "p95", "max")
    },
}
"""Name -> rounds, and what differs from the quick preset. "near": a barrier close enough to be felt."""


def settings_of(cell: str, seed: int) -> HealSettings:
    rounds, changes = CELLS[cell]
    return heal_settings("quick", rounds=rounds, seed=seed, evaluate={"n_answers": N_ANSWERS}, **changes)


def folder_of(cell: str, seed: int) -> Path:
    return HOME / f"{cell.replace(', ', '-').replace(' ', '_')}-{seed}"


def play(cell: str, seed: int, lm: Any, end: float) -> bool:
    """Goes on with the run until it ends, or until a round more would pass `end`; whether it ended."""
    settings, folder = settings_of(cell, seed), folder_of(cell, seed)
    known = folder / "config.json"
    wanted = settings.model_dump_json()
    if known.is_file() and known.read_text() != wanted:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known.write_text(wanted)
    log = folder / "events.jsonl"
    earlier = events.read(log).events if log.is_file() else ()
    done = max((event.round or 0 for event in earlier if event.kind == "round"), default=0)
    last = ""
    with EventLog(log) as kept:
        if earlier:
            kept.append("resumed", None, {"round": done})
        running = loop.run(lm, settings, folder, start_round=done, earlier=earlier)
        for kind, round_, data in running:
            if kind not in ("progress", "step"):
                kept.append(kind, round_, data)
            if kind == "round":
                print(f"{cell}, seed {seed}, round {round_}: {data['headline']['word']}, "
                      f"{data['headline']['why']} ({data['seconds']:.0f} s)", flush=True)  # fmt: skip
                if round_ != settings.rounds and time.monotonic() + data["seconds"] > end:
                    running.close()
                    break
            last = kind
    return last in ("finished", "failed")


def row_of(cell: str, seed: int) -> dict[str, Any]:
    """One run's row: what every stage measured, and how it ended."""
    base: dict[str, Any] = {}
    rounds: dict[int, dict[str, Any]] = {}
    end = {}
    for event in events.read(folder_of(cell, seed) / "events.jsonl").events:
        data, at = event.data, event.round or 0
        if event.kind in ("profile", "persona"):
            stage = data.get("stage", "persona")
            brief = {key: data[key] for key in ("p", "coherence", "text")}
            (base if at == 0 else rounds.setdefault(at, {}))[stage] = brief
        elif event.kind == "round":
            rounds[at] = {**rounds.get(at, {}), **data}
        elif event.kind in ("finished", "failed"):
            end = {"status": event.kind, "message": data.get("reason") or data.get("message")}
    return {"cell": cell, "seed": seed, "settings": settings_of(cell, seed).model_dump(mode="json"), **end,
            "base": base, "rounds": rounds}  # fmt: skip


def rows() -> dict[tuple[str, int], dict[str, Any]]:
    """The newest row of each run that ended."""
    found = {}
    for line in ROWS.read_text().splitlines() if ROWS.is_file() else ():
        row = json.loads(line)
        found[row["cell"], row["seed"]] = row
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    if args.what == "table":
        for path in write_table(list(rows().values()), list(CELLS), ROOT / "docs"):
            print(path)
        return 0
    end, lm = time.monotonic() + 60 * args.minutes, load("demo")
    for cell in args.cells:
        for seed in args.seeds:
            known = rows().get((cell, seed))
            if known and known["settings"] == settings_of(cell, seed).model_dump(mode="json"):
                continue
            if not play(cell, seed, lm, end):
                print("out of time: call it again to go on")
                return 0
            with ROWS.open("a") as file:
                file.write(json.dumps(events.plain(row_of(cell, seed))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
