"""The filter against labels: `python -m benchmarks.filter_check`.

`filter_labels.jsonl` holds completions of the bundled model over doses and rounds, read and labelled one by
one without their scores in sight, and texts that we wrote. Coherent: every sentence is grammatical and about
what the prompt says; being cut off at the token limit counts for nothing. `says`: enacts the trait (or
something else), narrates it, or refuses. Precision: of what a score drops, the share that deserves it.
Recall: of what deserves it, the share that it drops.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steer_heal.config import FilterSettings
from steer_heal.filter import CUTS, SCORES, judge
from steer_heal.records import FilterVerdict

LABELS = Path(__file__).with_name("filter_labels.jsonl")
Label = dict[str, Any]


def labels() -> list[Label]:
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]


def verdict(label: Label, settings: FilterSettings) -> FilterVerdict:
    """What the filter says; perplexities as they were under base, the other scores now."""
    found = {name: score(label["text"]) for name, score in SCORES.items()}
    return judge(found | label["scores"], settings)


def precision_recall(
    dropped: Iterable[bool], bad: Iterable[bool]
) -> tuple[int, int, float | None, float | None]:
    """(dropped, bad, precision, recall)."""
    pairs = list(zip(dropped, bad, strict=True))
    both = sum(a and b for a, b in pairs)
    n_dropped, n_bad = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    return n_dropped, n_bad, both / n_dropped if n_dropped else None, both / n_bad if n_bad else None


def deserves(reason: str) -> Callable[[Label], bool]:
    """Whether a text deserves to be dropped for it."""
    if reason == "narration":
        return lambda label: label["says"] == "narrates"
    if reason == "boilerplate":
        return lambda label: label["says"] == "refuses"
    return lambda label: not label["coherent"]


def table(settings: FilterSettings) -> list[tuple[str, int, int, float | None, float | None]]:
    """Each reason alone, then the whole verdict."""
    known = labels()
    judged = [verdict(label, settings) for label in known]
    rows = [
        (reason, *precision_recall((reason in v.reasons for v in judged), map(deserves(reason), known)))
        for reason in CUTS
    ]
    bad = [not label["coherent"] or label["says"] != "enacts" for label in known]
    return [*rows, ("verdict", *precision_recall((not v.kept for v in judged), bad))]


def markdown(settings: FilterSettings) -> list[str]:
    """The table as it stands in the documentation."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    head = ["| dropped for | dropped | deserving | precision | recall |", "| --- | --- | --- | --- | --- |"]
    return head + [
        f"| {name} | {n} | {bad} | {share(p)} | {share(r)} |" for name, n, bad, p, r in table(settings)
    ]


def main() -> None:
    known = labels()
    print(f"{len(known)} texts: {sum(label['coherent'] for label in known)} coherent, "
          f"{sum(label['says'] != 'enacts' for label in known)} narrate or refuse")  # fmt: skip
    usual = FilterSettings()
    print("\n".join(markdown(usual)))
    print("\nverdict by the cuts of perplexity over base's own, whole and last quarter:")
    for whole in (1.2, 1.3, 1.5, 1.75, 2.0, 2.5, 4.0):
        cuts = usual.model_copy(update={"max_perplexity_ratio": whole, "max_tail_ratio": whole + 0.1})
        *_, (_, n, bad, precision, recall) = table(cuts)
        print(f"{whole:.2f} {whole + 0.1:.2f}: dropped {n} of {bad} deserving, precision {precision:.2f}, "
              f"recall {recall:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
