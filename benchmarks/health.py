"""The words of text health against labels that readers gave without seeing a score.

`text_labels.jsonl`: answers to held-out prompts with their labels, one a reader; texts that readers disagree
on are left out. Thresholds were chosen on the texts of even number, and are reported on those of odd number
and on `unseen` ones, which were written and labelled when the thresholds stood.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from steer_heal import instrument
from steer_heal.cli.tables import Column, number, table
from steer_heal.config import THRESHOLDS, Thresholds
from steer_heal.evaluate import text_health
from steer_heal.models import LanguageModel, user

LABELS = Path(__file__).with_name("text_labels.jsonl")
WORDS = ("fine", "damaged", "broken")
READINGS = ("perplexity", "relevance", "repetition", "variety")
OLD = {"perplexity_damaged": 3.0, "perplexity_broken": 20.0, "repetition_broken": 0.3}
"""The text's thresholds before relevance was read."""

Row = dict[str, Any]
Rule = Callable[[Row], str]


def labelled(model: str) -> list[Row]:
    """The model's texts."""
    rows = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["model"] == model]


def scored(lm: LanguageModel, rows: Sequence[Row]) -> list[Row]:
    """Number, kind, label and readings of each text that has one label; base's own texts are the unit."""
    prompts = [tuple(lm.encode_chat([user(row["prompt"])])) for row in rows]
    ids = [row["ids"] for row in rows]
    own = instrument.text_logp(lm, prompts, ids, batch_size=16)
    found = [
        {"number": number_, "kind": row["kind"], "alpha": row["alpha"], "labels": row["labels"],
         "unseen": row.get("unseen", False),
         "perplexity": text_health.perplexity(logp), "relevance": about, "text": row["text"],
         "repetition": text_health.repetition(row["text"]), "variety": text_health.variety(row["text"])}
        for number_, (row, logp, about) in enumerate(
            zip(rows, own, instrument.relevances(lm, prompts, ids, own), strict=True)
        )
    ]  # fmt: skip
    base = [row for row in found if row["kind"] == "base"]
    unit = {key: median(row[key] for row in base) for key in ("perplexity", "relevance")}
    for row in found:
        row |= {f"{key}_ratio": row[key] / value for key, value in unit.items()}
    return [row for row in found if len(set(row["labels"])) == 1]


def word(row: Row, limits: Thresholds = THRESHOLDS) -> str:
    """Today's word."""
    of = (row["perplexity_ratio"], row["repetition"], row["relevance_ratio"], row["variety"])
    return text_health.text_verdict(*of, limits)


def old_word(row: Row) -> str:
    """The word by perplexity and repetition alone, and by the thresholds there were."""
    if row["repetition"] > OLD["repetition_broken"] or row["perplexity_ratio"] > OLD["perplexity_broken"]:
        return "broken"
    return "damaged" if row["perplexity_ratio"] > OLD["perplexity_damaged"] else "fine"


def worth(rows: Sequence[Row], rule: Rule, of: str) -> tuple[float, float]:
    """Precision and recall of one word."""
    said, meant = ([row for row in rows if f(row) == of] for f in (rule, lambda row: row["labels"][0]))
    both = sum(rule(row) == of for row in meant)
    return both / len(said) if said else 0.0, both / len(meant) if meant else 0.0


def half(rows: Sequence[Row], odd: int) -> list[Row]:
    return [row for row in rows if row["number"] % 2 == odd and not row["unseen"]]


def report(rows: Sequence[Row]) -> str:
    """Medians of the readings by label and of base's own texts; the words against the labels, old and new."""
    groups = [(f"labelled {of}", [r for r in rows if r["labels"][0] == of]) for of in WORDS]
    groups.append(("base's own", [row for row in rows if row["kind"] == "base"]))
    medians = [
        {"texts": name, "n": len(some), **{key: median(row[key] for row in some) for key in READINGS}}
        for name, some in groups if some
    ]  # fmt: skip
    healed = [row for row in rows if row["kind"].startswith("healed")]
    unseen = [row for row in rows if row["unseen"]]
    parts = [("chosen on", half(rows, 0)), ("the other", half(rows, 1)), ("healed, all", healed)]
    parts += [("unseen", unseen)] if unseen else []
    found = []
    for (name, some), (how, rule), of in itertools.product(parts, (("old", old_word), ("new", word)), WORDS):
        precision, recall = worth(some, rule, of)
        n = sum(row["labels"][0] == of for row in some)
        found.append({"half": name, "rule": how, "word": of, "n": n, "p": precision, "r": recall})
    columns = [Column("half", "half", width=11), Column("rule", "rule"), Column("word", "word", width=7)]
    columns += [number("n", "n", "d", 4), number("p", "precision", ".2f"), number("r", "recall", ".2f")]
    shown = [Column("texts", "texts", width=16), number("n", "n", "d", 4)]
    shown += [number(key, key, ".2f") for key in READINGS]
    return f"{table(shown, medians)}\n\n{table(columns, found)}"


def chosen(models: Mapping[str, Sequence[Row]]) -> str:
    """The thresholds of `broken` that do best where they are worst, over all models, on the even texts."""
    grid = itertools.product(
        (0.2, 0.25, 0.3, 0.35), (0.2, 0.3, 0.35, 0.4, 0.45, 0.5), (3, 4, 5, 6, 8), (0.45, 0.5, 0.55, 0.6)
    )
    names = ("repetition_broken", "relevance_broken", "perplexity_broken", "variety_broken")
    best: tuple[tuple[float, float], str] = ((0.0, 0.0), "no labelled texts")
    for values in grid:
        limits = Thresholds(**dict(zip(names, values, strict=True)))
        rule = partial(word, limits=limits)
        found = [worth(half(rows, 0), rule, "broken") for rows in models.values()]
        flat = [value for pair in found for value in pair]
        said = ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=True))
        if flat and (key := (min(flat), sum(flat))) > best[0]:
            best = key, f"best on the even texts: {said} (worst {key[0]:.2f})"
    return best[1]
