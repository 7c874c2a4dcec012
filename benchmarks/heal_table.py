"""The table of docs/healing-table.md and the path on the map, from the rows of `benchmarks.heal`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

from steer_heal.config import DEFAULT_TRAIT, HEAL_THRESHOLDS, HealThresholds
from steer_heal.data import trait
from steer_heal.headline import Headline, judge

Row = dict[str, Any]
HEAD = (
    "cell",
    "seed",
    "retention after rounds 1, 2, 3, ... (95% interval of the last)",
    "worst answer mass / base",
    "most looping",
    "worst median perplexity / persona's",
    "headlines",
    "bars",
)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def headline_of(row: Row, round_: Row, thresholds: HealThresholds) -> Headline:
    """A round's headline as it is judged now."""
    base, persona = row["base"]["base"], row["base"]["persona"]["text"]["perplexity"]
    target = trait(row["trait"]).target
    return judge(base, round_["healed"], target, round_["retention"], persona, thresholds)


def measures(row: Row) -> dict[str, Any]:
    """A run's figures, and which of the issue's bars it meets."""
    rounds = [
        row["rounds"][key] for key in sorted(row["rounds"], key=int) if "retention" in row["rounds"][key]
    ]
    base, persona = row["base"]["base"], row["base"]["persona"]["text"]["perplexity"]
    kept = [one["retention"] for one in rounds]
    mass = [one["healed"]["coherence"] / base["coherence"] for one in rounds]
    looping = [one["healed"]["text"]["looping"] for one in rounds]
    ratio = [one["healed"]["text"]["perplexity"] / persona for one in rounds]
    bars = {
        "retention after round 1 >= 0.8": bool(kept) and kept[0] >= 0.8,
        "beyond steering by round 3": len(kept) >= 3 and max(kept[:3]) > 1.0,
        "rising over four rounds": len(kept) >= 4 and kept[:4] == sorted(set(kept[:4])),
        "all rounds done": len(kept) == row["settings"]["rounds"],
        "mass": bool(mass) and min(mass) >= 0.95,
        "looping": bool(looping) and max(looping) <= 0.02,
        "perplexity": bool(ratio) and max(ratio) <= 1.5,
    }
    words = [headline_of(row, one, HEAL_THRESHOLDS).word for one in rounds]
    interval = rounds[-1].get("retention_interval") if rounds else None
    return {"kept": kept, "mass": mass, "looping": looping, "ratio": ratio, "bars": bars, "words": words,
            "interval": interval}  # fmt: skip


def line(row: Row) -> str:
    """A run as a line of the table."""
    found = measures(row)
    kept = found["kept"]
    shown = [f"{value:.2f}" for value in kept]
    low_high = " ({:.2f} to {:.2f})".format(*found["interval"]) if found["interval"] else ""
    missed = [name for name, met in found["bars"].items() if not met]
    words = ", ".join(f"{found['words'].count(word)} {word}" for word in dict.fromkeys(found["words"]))
    failed = f"; ended: {row['message']}" if row.get("status") == "failed" else ""
    cells = (
        row["cell"],
        str(row["seed"]),
        ", ".join(shown) + low_high,
        f"{min(found['mass'], default=0):.3f}",
        f"{max(found['looping'], default=0):.0%}",
        f"{max(found['ratio'], default=0):.2f}",
        words + failed,
        "all" if not missed else "not " + ", ".join(missed),
    )
    return "| " + " | ".join(cells) + " |"


def references(rows: Sequence[Row]) -> list[str]:
    """What a trait's runs are compared with: base, steering alone, the persona as a system prompt."""
    row, target = rows[0], trait(rows[0]["trait"]).target
    base, persona = row["base"]["base"], row["base"]["persona"]
    steered = [one["rounds"]["1"]["steered"] for one in rows if "steered" in one["rounds"].get("1", {})]
    shown = list(dict.fromkeys([*target, "SocialNorms"]))

    def reads(name: str, one: Row, perplexity: float) -> str:
        p, text = one["p"], one["text"]
        moved = sum(sign * (p[key] - base["p"][key]) for key, sign in target.items())
        cells = [name, *(f"{p[key]:.3f}" for key in shown), f"{moved:.3f}", f"{one['coherence']:.4f}"]
        return "| " + " | ".join([*cells, f"{perplexity:.2f}", f"{text['looping']:.0%}"]) + " |"

    head = ["", *shown, "moved", "answer mass", "median perplexity", "looping"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines.append(reads("base", base, base["text"]["perplexity"]))
    if steered:
        middle = median(s["text"]["perplexity"] for s in steered)
        lines.append(reads("base steered at alpha 1", steered[0], middle))
    lines.append(reads("base told the persona", persona, persona["text"]["perplexity"]))
    return lines


def path_figure(rows: Sequence[Row]) -> go.Figure:
    """Base, then the healed model of each round, a line a run, a colour a cell (the first eight cells of the
    trait); steering and persona as marks."""
    figure = go.Figure()
    gains = next(name for name, sign in trait(rows[0]["trait"]).target.items() if sign > 0)
    cells = list(dict.fromkeys(row["cell"] for row in rows))[: len(COLOURS)]
    named: set[str] = set()
    for row in rows:
        if row["cell"] not in cells:
            continue
        base, colour = row["base"]["base"], COLOURS[cells.index(row["cell"])]
        found = [row["rounds"][key]["healed"] for key in sorted(row["rounds"], key=int)
                 if "healed" in row["rounds"][key]]  # fmt: skip
        points = [base, *found]
        figure.add_trace(go.Scatter(
            x=[one["p"]["SocialNorms"] for one in points], y=[one["p"][gains] for one in points],
            mode="lines+markers", name=row["cell"], legendgroup=row["cell"],
            showlegend=row["cell"] not in named, line={"color": colour}, marker={"size": 6},
        ))  # fmt: skip
        named.add(row["cell"])
    row = rows[0]
    for name, one, symbol in (
        ("base steered at alpha 1", row["rounds"]["1"]["steered"], "diamond"),
        ("base told the persona", row["base"]["persona"], "star"),
    ):
        figure.add_trace(go.Scatter(
            x=[one["p"]["SocialNorms"]], y=[one["p"][gains]], mode="markers", name=name,
            marker={"symbol": symbol, "size": 13, "color": "#444"},
        ))  # fmt: skip
    figure.update_layout(
        template="plotly_white", width=900, height=520, margin={"l": 60, "r": 10, "t": 10, "b": 50},
        xaxis={"title": {"text": "SocialNorms, mean probability"}},
        yaxis={"title": {"text": f"{gains}, mean probability"}},
    )  # fmt: skip
    return figure


def picture(figure: go.Figure, path: Path) -> None:
    """The figure as a PNG, drawn by the browser that the tests use."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 520})
        page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_selector(".main-svg")
        page.locator(".plotly-graph-div").screenshot(path=path)
        browser.close()


def sensitivity(rows: Sequence[Row]) -> list[str]:
    """Of each threshold of the headline: how many rounds' words change when it is moved by a fifth."""
    rounds = [(row, one) for row in rows for one in row["rounds"].values() if "retention" in one]
    now = [headline_of(row, one, HEAL_THRESHOLDS).word for row, one in rounds]
    lines = ["| threshold | value | a fifth lower | a fifth higher |", "| --- | --- | --- | --- |"]
    for name, value in HEAL_THRESHOLDS.model_dump().items():
        told = []
        for factor in (0.8, 1.2):
            moved = HEAL_THRESHOLDS.model_copy(update={name: value * factor})
            pairs = zip(now, (headline_of(row, one, moved).word for row, one in rounds), strict=True)
            changes = Counter(f"{old} to {new}" for old, new in pairs if old != new)
            told.append(", ".join(f"{count} {change}" for change, count in changes.items()) or "none")
        lines.append(f"| {name} | {value:g} | {told[0]} | {told[1]} |")
    return ["## Thresholds of the headline", "", f"Words that change among {len(rounds)} rounds.", "", *lines]


def write_table(rows: Sequence[Row], cells: Sequence[str], docs: Path) -> list[Path]:
    """Writes the table and a figure for each trait; their paths, none without rows."""
    if not rows:
        return []
    lines = [
        "# Healing: every run",
        "",
        "Made by `python -m benchmarks.heal table`; bundled model, quick preset.",
    ]
    lines += [
        'Cells named "before" ran with the mechanism and the defaults before the harder traits were tried,',
        'those named "186 prompts" with the ones between, those named "four epochs" with the last',
        "before these (96 texts in four epochs, 100 answers a round).",
    ]
    written = [docs / "healing-table.md"]
    for name in sorted({row["trait"] for row in rows}):
        known = [*cells, *sorted({row["cell"] for row in rows} - set(cells))]
        mine = sorted(
            (row for row in rows if row["trait"] == name),
            key=lambda row: (known.index(row["cell"]), row["seed"]),
        )
        missing = [cell for cell in cells if cell not in {row["cell"] for row in mine}]
        lines += ["", f"## {name}", "", *references(mine)]
        lines += ["", "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD), *map(line, mine), ""]
        lines.append(f"Not run: {'; '.join(missing)}." if missing else "Every cell was run.")
        suffix = "" if name == DEFAULT_TRAIT else f"-{name}"
        written.append(docs / f"healing-path{suffix}.png")
        picture(path_figure(mine), written[-1])
    lines += ["", *sensitivity(rows)]
    written[0].write_text("\n".join([*lines, ""]))
    return written
