"""Sweeps and grids of doses to plotly figures as plain JSON, pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import quantiles
from typing import Any

import plotly.graph_objects as go

from components.charts import as_json
from components.palette import BASE, NEUTRAL, STEERED
from steer_heal.config import THRESHOLDS
from steer_heal.records import Controls, DoseRow, Sweep

Band = tuple[float, float]
Values = Callable[[DoseRow], list[float]]
PERPLEXITY, RELEVANCE = "perplexity under base", "relevance, nats"
ANSWERS = "coherence: answer mass"
MOVEMENT = "trait movement"
AGREEMENT = "agreement with the labels"
SYMBOLS = {"fine": "circle", "damaged": "triangle-up-open", "broken": "x"}
MARKS = {
    PERPLEXITY: (THRESHOLDS.perplexity_damaged, THRESHOLDS.perplexity_broken),
    RELEVANCE: (THRESHOLDS.relevance_damaged, THRESHOLDS.relevance_broken),
    ANSWERS: (THRESHOLDS.mass_weakened, THRESHOLDS.mass_lost),
}
"""Shares of base's own value at which a word changes."""
TEXT_LINES = {"damaged": "dash", "broken": "solid"}
"""How the line is drawn from which on the text is as bad; those of the answers are dotted."""
WORDS = tuple(SYMBOLS)
WORD_COLOURS = ("#80cdb9", "#f0cd80", "#e39393")
STEPS = [[(n + end) / 3, colour] for n, colour in enumerate(WORD_COLOURS) for end in (0, 1)]
"""A colour a word, without shades between them."""
LEAST_SPREAD = 3
"""A band is drawn for at least this many vignettes."""
GAP, SPACE = 0.05, 0.04
TEXT = "text health"
BLUE_TO_ORANGE = [[0.0, BASE], [0.5, "#e8e8e8"], [1.0, STEERED]]


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """The quartiles of some values; none where there are too few to speak of a spread."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < LEAST_SPREAD:
        return None
    low, _, high = quantiles(finite, n=4, method="inclusive")
    return low, high


def dose(sweep: Sweep, target: Mapping[str, int]) -> dict[str, Any]:
    """Measures against alpha, the text's first, one below the other, over the same axis; every point carries
    its alpha. One that no dose has, as a cloze has no answer mass, is left out.

    Bands are the middle half of the texts or vignettes, dotted lines are base, vertical ones where a word
    changes: the text's, and dotted the answers'.
    `target`: the sign each foundation of the trait should move by.
    """
    figure, rows = go.Figure(), sweep.rows
    if not rows:
        return as_json(figure)
    known = [one for one in _measures(rows, target) if any(one[1](row) is not None for row in rows)]
    measures = known or _measures(rows, target)
    height = (1 - GAP * (len(measures) - 1)) / len(measures)
    axes, notes, lines = {}, [], []
    for number, (title, value, values) in enumerate(measures, 1):
        name = "y" if number == 1 else f"y{number}"
        top = 1 - (number - 1) * (height + GAP)
        axes[f"yaxis{number}"] = {"domain": [max(0.0, top - height), top], "nticks": 4, "zeroline": False}
        figure.add_traces(_measure(rows, title, value, values, name))
        notes.append(_note(f"<b>{title}</b>", x=0, xref="paper", y=top, yref="paper", xanchor="left"))
        base = _base(rows)
        if base is not None and (level := value(base)) is not None:
            lines += [_level(level, name, BASE)]
            lines += [_level(mark * level, name, NEUTRAL) for mark in MARKS.get(title, ())]
        if sweep.controls is not None and title == MOVEMENT:
            lines += _controls(sweep.controls, target, name)
        if title == PERPLEXITY:
            axes[f"yaxis{number}"]["type"] = "log"
    marked, words = _broken(sweep.breaks)
    figure.update_layout(
        **axes,
        xaxis={
            "title": {"text": "alpha, in units of c*"},
            "range": _reach(rows),
            "anchor": f"y{len(measures)}",
            "zeroline": False,
        },
        annotations=[*notes, *words],
        shapes=[*lines, *marked],
        margin={"l": 52, "r": 14, "t": 78, "b": 44},
        showlegend=False,
        hovermode="x unified",
        hoversubplots="axis",
    )
    return as_json(figure)


def _reach(rows: Sequence[DoseRow]) -> list[float]:
    """The axis a little beyond the outermost doses."""
    alphas = [row.alpha for row in rows]
    spare = 0.04 * (max(alphas) - min(alphas)) or 0.5
    return [min(alphas) - spare, max(alphas) + spare]


def _measures(
    rows: Sequence[DoseRow], target: Mapping[str, int]
) -> list[tuple[str, Callable[[DoseRow], float | None], Values]]:
    """Title, value of a row, and the values of its vignettes."""
    base = _base(rows)
    start = {v.id: v.p for v in base.profile.per_vignette} if base and base.profile else {}

    def masses(row: DoseRow) -> list[float]:
        return [v.mass for v in row.profile.per_vignette] if row.profile else []

    def moves(row: DoseRow) -> list[float]:
        scored = row.profile.per_vignette if row.profile else ()
        return [
            sum(sign * (v.p[name] - start[v.id][name]) for name, sign in target.items())
            for v in scored
            if v.id in start and target and v.p and start[v.id]
        ]

    def texts(name: str) -> Values:
        return lambda row: [value for text in row.texts if (value := getattr(text, name)) is not None]

    return [
        (PERPLEXITY, lambda row: row.perplexity, texts("perplexity")),
        (RELEVANCE, lambda row: row.relevance, texts("relevance")),
        ("repetition", lambda row: row.repetition, texts("repetition")),
        ("95th percentile of KL, nats", lambda row: row.kl_p95, texts("kl_p95")),
        (MOVEMENT, lambda row: row.trait_shift, moves),
        (AGREEMENT, _agreement, lambda row: []),
        (ANSWERS, lambda row: row.coherence, masses),
    ]


def _agreement(row: DoseRow) -> float | None:
    return row.profile.agreement.value if row.profile else None


def _measure(
    rows: Sequence[DoseRow],
    title: str,
    value: Callable[[DoseRow], float | None],
    values: Values,
    axis: str,
) -> list[Any]:
    """One measure's line, and its band where the vignettes are enough for one."""
    known = [(row, found) for row in rows if (found := value(row)) is not None and math.isfinite(found)]
    spreads = [(row.alpha, found) for row in rows if (found := spread(values(row))) is not None]
    band = go.Scatter(
        x=[alpha for alpha, _ in spreads] + [alpha for alpha, _ in reversed(spreads)],
        y=[high for _, (_, high) in spreads] + [low for _, (low, _) in reversed(spreads)],
        yaxis=axis,
        name=f"{title}, middle half of the vignettes",
        fill="toself",
        fillcolor="rgba(213, 94, 0, 0.26)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=[row.alpha for row, _ in known],
        y=[found for _, found in known],
        yaxis=axis,
        name=title,
        mode="lines+markers",
        customdata=[{"alpha": row.alpha} for row, _ in known],
        text=[row.verdict for row, _ in known],
        hovertemplate="%{y:.3g}" + (" · %{text}" if axis == "y" else ""),
        line={"color": STEERED, "width": 1.8},
        marker={
            "size": 8,
            "symbol": [SYMBOLS[row.verdict or "fine"] for row, _ in known],
            "color": STEERED,
        },
    )
    return [band, line] if spreads else [line]


def _broken(breaks: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A vertical line and its words for each place where a word changes."""
    lines, words = [], []
    for number, (word, alpha) in enumerate(breaks.items()):
        style = {"color": NEUTRAL, "width": 1.5, "dash": TEXT_LINES.get(word, "dot")}
        lines.append(
            {"type": "line", "xref": "x", "yref": "paper", "x0": alpha, "x1": alpha, "y0": 0, "y1": 1,
             "line": style}
        )  # fmt: skip
        text = f"{'text' if word in TEXT_LINES else 'answers'} {word} from {alpha:g}"
        above = {"xanchor": "right", "xshift": -3, "yshift": 14 + 15 * number}
        words.append(_note(text, x=alpha, xref="x", y=1, yref="paper", **above))
    return lines, words


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "yanchor": "bottom", "font": {"size": 11}, **place}


def _level(value: float, axis: str, colour: str) -> dict[str, Any]:
    line = {"color": colour, "width": 1.2, "dash": "dot"}
    return {"type": "line", "xref": "paper", "yref": axis, "x0": 0, "x1": 1, "y0": value, "y1": value,
            "line": line}  # fmt: skip


def _controls(controls: Controls, target: Mapping[str, int], axis: str) -> list[dict[str, Any]]:
    """A grey band over what random directions of alpha 1's KL move, and a dashed line for the persona."""
    shifts, persona = controls.shifts(dict(target)), controls.persona_shift(dict(target))
    place = {"xref": "paper", "yref": axis, "x0": 0, "x1": 1}
    found = []
    if shifts:
        ends = {"y0": min(shifts), "y1": max(shifts)}
        look = {"fillcolor": NEUTRAL, "opacity": 0.25, "line": {"width": 0}, "layer": "below"}
        found.append({**place, **ends, **look, "type": "rect"})
    return found if persona is None else [*found, {**_level(persona, axis, NEUTRAL), "name": "persona"}]


def _base(rows: Sequence[DoseRow]) -> DoseRow | None:
    return next((row for row in rows if row.alpha == 0.0), None)


# ---- alpha x layer ----------------------------------------------------------------------------------------


def grid(cells: Sequence[DoseRow], layers_of: Callable[[Band], Sequence[int]]) -> dict[str, Any]:
    """Trait movement, text health and what the answers are worth side by side, a row a band, a column an
    alpha; cells carry both. What no cell has is left out."""
    figure = go.Figure()
    if not cells:
        return as_json(figure)
    alphas = sorted({cell.alpha for cell in cells})
    bands = list(dict.fromkeys(cell.band for cell in cells))
    at = {(cell.band, cell.alpha): cell for cell in cells}
    held = [layers_of(band) for band in bands]
    names = [f"{found[0]}" if len(found) == 1 else f"{found[0]}–{found[-1]}" for found in held]
    rows = [[at.get((band, alpha)) for alpha in alphas] for band in bands]
    panels = [one for one in _panels(cells) if any(one[1](cell) is not None for cell in cells)]
    shared = {"title": {"text": "alpha, in units of c*"}, "type": "category", "showgrid": False}
    width, axes = (1 - SPACE * (len(panels) - 1)) / max(1, len(panels)), {}
    for number, (title, value, scale, (low, high)) in enumerate(panels):
        left, axis = number * (width + SPACE), f"x{number + 1}" if number else "x"
        axes[f"xaxis{number + 1}"] = {**shared, "domain": [left, left + width], "anchor": "y"}
        figure.add_trace(
            go.Heatmap(
                x=[f"{alpha:g}" for alpha in alphas],
                y=names,
                z=[[None if cell is None else value(cell) for cell in row] for row in rows],
                customdata=[[None if cell is None else _place(cell) for cell in row] for row in rows],
                text=[["" if cell is None else cell.verdict or "" for cell in row] for row in rows],
                xaxis=axis,
                name=title,
                colorscale=scale,
                zmin=low,
                zmax=high,
                xgap=1,
                ygap=1,
                hovertemplate="layers %{y}, alpha %{x}<br>"
                + ("text %{text}" if title == TEXT else f"{title} %{{z:.3f}}")
                + "<extra></extra>",
                colorbar=_scale(title, left, width),
            )
        )
    figure.update_layout(
        **axes,
        yaxis={"title": {"text": "layers"}, "type": "category", "showgrid": False},
        margin={"l": 56, "r": 14, "t": 62, "b": 44},
        hovermode="closest",
    )
    return as_json(figure)


def _panels(cells: Sequence[DoseRow]) -> list[tuple[str, Callable[[DoseRow], float | None], Any, Band]]:
    """Title, value, colours and their ends; the answers' by agreement where a cell has it, else by mass."""
    moved = max((abs(c.trait_shift) for c in cells if c.trait_shift is not None), default=0.0) or 1.0
    agrees = any(_agreement(cell) is not None for cell in cells)
    return [
        (MOVEMENT, lambda cell: cell.trait_shift, BLUE_TO_ORANGE, (-moved, moved)),
        (TEXT, lambda cell: WORDS.index(cell.verdict) if cell.verdict else None, STEPS, (-0.5, 2.5)),
        (AGREEMENT, _agreement, "Cividis", (0.0, 1.0))
        if agrees
        else (ANSWERS, lambda cell: cell.coherence, "Cividis", (0.0, 1.0)),
    ]


def _scale(title: str, left: float, width: float) -> dict[str, Any]:
    """The legend of colours, lying above its part."""
    words = {"tickvals": list(range(len(WORDS))), "ticktext": list(WORDS)} if title == TEXT else {}
    return {
        **words,
        "orientation": "h",
        "x": left,
        "xanchor": "left",
        "len": width,
        "y": 1.0,
        "yanchor": "bottom",
        "thickness": 9,
        "nticks": 4,
        "title": {"text": title, "side": "top"},
    }


def _place(cell: DoseRow) -> dict[str, float]:
    return {"alpha": cell.alpha, "low": cell.band[0], "high": cell.band[1]}
