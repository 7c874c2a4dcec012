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
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.heal_table import write_table
from steer_heal import data, events, loop
from steer_heal.config import DEFAULT_TRAIT, HealSettings, heal_settings
from steer_heal.events import EventLog
from steer_heal.models import load

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "heal"
ROWS = HOME / "rows.jsonl"
N_ANSWERS = 300
"""Free answers whose health is measured, to each held-out prompt three: of 100, 3 loop by chance at 1.5%."""

ROUNDS = 8
NEAR = {"tau": 0.1, "lam": 1.0}
ALL_COHERENT: dict[str, Any] = {"filter": {"trait_share": 1.0}, "data": {"n_completions": 576}}
TEXT_ONLY: dict[str, Any] = {"train": {"distil": 0.0}}
CELLS: dict[str, dict[str, Any]] = {
    "default": {},
    "nll": {"train": {"divergence": "nll"}},
    "known method: coherent text, nll": {**ALL_COHERENT, "train": {"distil": 0.0, "divergence": "nll"}},
    "unsteered text": {"data": {"alphas": (0.0,), "scales": (1.0,)}, **TEXT_ONLY},
    "near, base, kl_rev rmse": {"train": {"reference": "base", **NEAR}},
    **{
        f"near, {kind} {how}": {"train": {"divergence": kind, "aggregate": how, **NEAR}}
        for how in ("rmse", "mean", "p95", "max")
        for kind in ("kl_rev", "kl_fwd")
    },
    "text only": TEXT_ONLY,
    "all coherent text": ALL_COHERENT,
    "unsteered text, all coherent": {
        "data": {"alphas": (0.0,), "scales": (1.0,), "n_completions": 576},
        "filter": {"trait_share": 1.0},
        **TEXT_ONLY,
    },
}
"""Name -> what differs from the quick preset. "near": a barrier close enough to be felt."""

Key = tuple[str, str, int]
"""A run: trait, cell, seed."""


def settings_of(key: Key) -> HealSettings:
    trait, cell, seed = key
    return heal_settings(
        "quick", model="demo", trait=trait, rounds=ROUNDS, seed=seed, evaluate={"n_answers": N_ANSWERS},
        **CELLS[cell],
    )  # fmt: skip


def folder_of(key: Key) -> Path:
    trait, cell, seed = key
    return HOME / trait / f"{cell.replace(', ', '-').replace(' ', '_')}-{seed}"


def play(key: Key, lm: Any, end: float) -> bool:
    """Goes on with the run until it ends, or until a round more would pass `end`; whether it ended."""
    settings, folder = settings_of(key), folder_of(key)
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
                print(f"{', '.join(map(str, key))}, round {round_}: {data['headline']['word']}, "
                      f"{data['headline']['why']} ({data['seconds']:.0f} s)", flush=True)  # fmt: skip
                if round_ != settings.rounds and time.monotonic() + data["seconds"] > end:
                    running.close()
                    break
            last = kind
    return last in ("finished", "failed")


def row_of(key: Key) -> dict[str, Any]:
    """One run's row: what every stage measured, and how it ended."""
    base: dict[str, Any] = {}
    rounds: dict[int, dict[str, Any]] = {}
    end = {}
    for event in events.read(folder_of(key) / "events.jsonl").events:
        data, at = event.data, event.round or 0
        if event.kind in ("profile", "persona"):
            stage = data.get("stage", "persona")
            brief = {key: data[key] for key in ("p", "coherence", "text")}
            (base if at == 0 else rounds.setdefault(at, {}))[stage] = brief
        elif event.kind == "round":
            rounds[at] = {**rounds.get(at, {}), **data}
        elif event.kind in ("finished", "failed"):
            end = {"status": event.kind, "message": data.get("reason") or data.get("message")}
    trait, cell, seed = key
    return {"trait": trait, "cell": cell, "seed": seed, "settings": settings_of(key).model_dump(mode="json"),
            **end, "base": base, "rounds": rounds}  # fmt: skip


def rows() -> dict[Key, dict[str, Any]]:
    """The newest row of each run that ended."""
    found = {}
    for line in ROWS.read_text().splitlines() if ROWS.is_file() else ():
        row = json.loads(line)
        found[row.setdefault("trait", DEFAULT_TRAIT), row["cell"], row["seed"]] = row
    return found


def run(keys: Sequence[Key], minutes: float) -> None:
    """Plays the runs that have no row with their settings yet, in their order, until the time is up."""
    end, lm = time.monotonic() + 60 * minutes, load("demo")
    for key in keys:
        known = rows().get(key)
        if known and known["settings"] == settings_of(key).model_dump(mode="json"):
            continue
        if not play(key, lm, end):
            print("out of time: call it again to go on")
            return
        with ROWS.open("a") as file:
            file.write(json.dumps(events.plain(row_of(key))) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--traits", nargs="+", choices=sorted(data.traits()), default=[DEFAULT_TRAIT])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=5.0)
    args = parser.parse_args()
    if args.what == "table":
        for path in write_table(list(rows().values()), list(CELLS), ROOT / "docs"):
            print(path)
        return 0
    ordered = product(args.seeds, args.traits, args.cells)
    run([(trait, cell, seed) for seed, trait, cell in ordered], args.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
