"""What the readings are worth: `python -m benchmarks.readings --models smollm2 demo [--json FILE]`.

Sections (`--only NAME` for one), each a table a model:

- frames: agreement with the labels on base, with its 95% interval and chance beside it; how far the orders or
  wordings differ (mean total variation); answer mass, where there is one; seconds. Of every frame and, of a
  cloze, of every wording alone, on our own vignettes and, where the shared folder lies beside the checkout,
  on the 132 classic ones. Those were never looked at while the wordings were chosen.
- health: the text's words against the labels of benchmarks/text_labels.jsonl, see `benchmarks.health`.

Without a name of ours, a model may be a folder. Weights are read as float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import health
from steer_heal import data, instrument, models
from steer_heal.cli.tables import Column, number, table, worth
from steer_heal.data import AnyFrame, Cloze
from steer_heal.models import LanguageModel
from steer_heal.records import Vignette

CLASSIC = Path(__file__).parents[2] / "shared" / "data" / "vignettes_classic_other_violate.jsonl"
SECTIONS = ("frames", "health")
CONDITION = "other_violate"
PUBLISHED = "tinymfv"
"""Another package's frame, which thinks first: its numbers are in docs/ecosystem.md."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2", "demo"], metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many vignettes of a set, balanced")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    document: dict[str, dict[str, Any]] = {}
    for name in args.models:
        lm = models.load(name, dtype="float32")
        print(f"\n{name}: {torch.get_num_threads()} threads", flush=True)
        document[name] = {}
        if "frames" in args.only:
            document[name]["frames"] = rows = list(frames(lm, args.limit))
            print(f"\n{frames_table(rows)}", flush=True)
        if "health" in args.only and (known := health.labelled(name)):
            document[name]["health"] = texts = health.scored(lm, known)
            print(f"\n{health.report(texts)}", flush=True)
    if "health" in args.only:
        scored = {name: found["health"] for name, found in document.items() if "health" in found}
        print(f"\n{health.chosen(scored)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


# ---- frames -----------------------------------------------------------------------------------------------


def frames(lm: LanguageModel, limit: int | None) -> Iterator[dict[str, Any]]:
    """A row for every frame, and every wording of a cloze, on every set."""
    for set_name, vignettes in sets(lm, limit).items():
        for name, frame in asked():
            began = time.perf_counter()
            found = instrument.evaluate(lm, vignettes, frame)[0]
            row = {"set": set_name, "asked": name, "n": len(vignettes), "coherence": found.coherence}
            row |= worth(found.frame, found.agreement, found.order_tv)
            yield row | {"seconds": time.perf_counter() - began}


def sets(lm: LanguageModel, limit: int | None) -> dict[str, list[Vignette]]:
    found = {"ours": lm.material.vignettes(condition=CONDITION, limit=limit)}
    if CLASSIC.is_file():
        found["classic"] = data.vignettes(CLASSIC, condition=CONDITION, limit=limit)
    return found


def asked() -> Iterator[tuple[str, AnyFrame]]:
    for name in data.frames():
        frame = data.frame(name)
        if name != PUBLISHED:
            yield name, frame
        for number_, wording in enumerate(frame.wordings if isinstance(frame, Cloze) else (), 1):
            yield f"{name}, wording {number_}", replace(frame, wordings=(wording,))


def frames_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = [
        Column("set", "set"), Column("asked", "frame"), number("n", "n", "d", 4),
        *(number(key, key.removeprefix("agreement_"), ".3f", 6) for key in
          ("agreement", "agreement_low", "agreement_high", "chance")),
        number("order_tv", "order/wording TV", ".2f"), number("coherence", "answer mass", ".2f"),
        number("seconds", "s", ".1f", 5),
    ]  # fmt: skip
    return table(columns, rows)


if __name__ == "__main__":
    main()
