"""Records to plotly figures as plain JSON, pure. The browser sets the colours of text and grid."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from components.palette import HEALED, NEUTRAL, STAGE_COLOURS, STEERED
from steer_heal.records import CANNOT_ANSWER, ControlNode, MapNode, RoundDetail

HUMAN_CLASSIC = {"Care": 0.198, "SocialNorms": 0.193}
SYMBOLS = {"base": "circle", "steered": "diamond", "healed": "square"}
MAX_LABELLED_RUNS = 6
CURVES = {
    "loss": ("loss", NEUTRAL, "solid"),
    "nll": ("NLL", HEALED, "solid"),
    "held_out_nll": ("NLL, held out", HEALED, "dot"),
    "divergence": ("divergence", STEERED, "solid"),
    "barrier": ("barrier's share", STEERED, "dot"),
}


def as_json(figure: go.Figure) -> dict[str, Any]:
    """The figure as JSON of lists and numbers, what the browser's Plotly.react takes."""
    parsed = json.loads(figure.to_json() or "{}")
    return {"data": parsed["data"], "layout": {k: v for k, v in parsed["layout"].items() if k != "template"}}


def shade(coherence: float | None) -> float:
    """Opacity of a node: full when coherent or not known, faint when broken."""
    share = 1.0 if coherence is None else min(1.0, max(0.0, (coherence - 0.5) / 0.5))
    return round(0.25 + 0.75 * share, 3)


def hover(node: MapNode, name: str) -> str:
    """Everything about a node, a line each."""
    lines = [
        f"<b>{escape(name)}</b>" + (" (example)" if node.is_example else ""),
        "base" if node.stage == "base" else f"round {node.round}, {node.stage} at alpha {node.alpha:g}",
        f"Care {node.care:.3f}, SocialNorms {node.social_norms:.3f}",
        f"{node.n_vignettes} vignettes"
        if node.coherence is None
        else f"coherence {node.coherence:.3f} over {node.n_vignettes} vignettes",
    ]
    if said := node.worth.sentence(escape(node.frame or "")):
        lines.append(said)
    if node.retention is not None:
        lines.append(f"retention {node.retention:.2f}")
    lines.append(f"{escape(node.model)}, {escape(node.trait)}, seed {node.seed}")
    lines.append(time.strftime("%d %b %Y %H:%M", time.localtime(node.finished_at)))
    return "<br>".join(lines)


def _stage_trace(
    stage: str,
    nodes: Sequence[MapNode],
    names: Mapping[str, str],
    selected: tuple[str, int] | None,
    silent: Collection[str],
) -> Any:
    """All nodes of one stage; the selected round's are ringed, rounds are numbered inside healed ones."""
    ringed = [selected == (n.run_id, n.round) for n in nodes]
    return go.Scatter(
        x=[n.social_norms for n in nodes],
        y=[n.care for n in nodes],
        mode="markers+text" if stage == "healed" else "markers",
        name=stage,
        text=[str(n.round) for n in nodes] if stage == "healed" else None,
        textfont={"size": 10, "color": "white"},
        hovertext=[hover(n, names.get(n.run_id) or n.run_id) for n in nodes],
        hoverinfo="text",
        customdata=[[n.run_id, n.round, n.stage] for n in nodes],
        marker={
            "size": [19 if r else 15 for r in ringed]
            if stage == "healed"
            else [15 if r else 11 for r in ringed],
            "symbol": SYMBOLS[stage],
            "color": STAGE_COLOURS[stage],
            "opacity": [shade(0.0 if n.run_id in silent else n.coherence) for n in nodes],
            "line": {"width": [3 if r else 0 for r in ringed], "color": NEUTRAL},
        },
    )


def _paths(nodes: Sequence[MapNode]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Dotted: what steering did from where the round began. Arrow: to healed, from steered or, where a round
    has none, from the round before."""
    by = {(n.run_id, n.round, n.stage): n for n in nodes}
    xs: list[float | None] = []
    ys: list[float | None] = []
    arrows = []
    for (run_id, number, stage), node in by.items():
        before = by.get((run_id, number - 1, "healed")) or by.get((run_id, 0, "base"))
        if stage == "steered" and before is not None:
            xs += [before.social_norms, node.social_norms, None]
            ys += [before.care, node.care, None]
        start = by.get((run_id, number, "steered")) or before
        if stage == "healed" and start is not None:
            arrows.append(
                {
                    "x": node.social_norms,
                    "y": node.care,
                    "ax": start.social_norms,
                    "ay": start.care,
                    "xref": "x",
                    "yref": "y",
                    "axref": "x",
                    "ayref": "y",
                    "text": "",
                    "showarrow": True,
                    "arrowhead": 2,
                    "arrowwidth": 1.5,
                    "arrowcolor": HEALED,
                    "standoff": 9,
                    "startstandoff": 6,
                }
            )
    line = go.Scatter(
        x=xs,
        y=ys,
        mode="lines",
        line={"dash": "dot", "width": 1.2, "color": STEERED},
        hoverinfo="skip",
        showlegend=False,
    )
    return ([line] if xs else []), arrows


def _labels(
    nodes: Sequence[MapNode], names: Mapping[str, str], silent: Collection[str]
) -> list[dict[str, Any]]:
    """Each run's name beside its last node, while there are few enough to read; and where its model cannot
    answer, that it cannot."""
    last = {n.run_id: n for n in nodes if n.stage != "steered"}
    if len(last) > MAX_LABELLED_RUNS:
        return []
    return [
        {
            "x": n.social_norms,
            "y": n.care,
            "text": escape((names.get(run_id) or run_id)[:32])
            + (f"<br>{CANNOT_ANSWER}" if run_id in silent else ""),
            "showarrow": False,
            "xanchor": "left",
            "yanchor": "bottom",
            "xshift": 10,
            "yshift": 4,
            "font": {"size": 11},
        }
        for run_id, n in last.items()
    ]


def moral_map(
    nodes: Sequence[MapNode],
    names: Mapping[str, str],
    selected: tuple[str, int] | None = None,
    controls: Sequence[ControlNode] = (),
) -> dict[str, Any]:
    """Care (up) against SocialNorms: up and to the left is more trait. Without nodes it has no traces.

    `controls`: what random directions of the same KL, and the persona as text, do to the base.
    """
    figure = go.Figure()
    silent = {n.run_id for n in nodes if n.stage == "base" and n.worth.cannot_answer}
    lines, arrows = _paths(nodes)
    figure.add_traces([*_controls(controls), *lines])
    for stage in STAGE_COLOURS:
        found = [n for n in nodes if n.stage == stage]
        if found:
            figure.add_trace(_stage_trace(stage, found, names, selected, silent))
    if any(n.vignette_set == "classic" for n in nodes):
        figure.add_trace(
            go.Scatter(
                x=[HUMAN_CLASSIC["SocialNorms"]],
                y=[HUMAN_CLASSIC["Care"]],
                mode="markers",
                name="people (published)",
                marker={"symbol": "star", "size": 14, "color": NEUTRAL},
                hoverinfo="text",
                hovertext=["Published human mean on the classic set<br>Care 0.198, SocialNorms 0.193"],
            )
        )
    figure.update_layout(
        xaxis={"title": {"text": "← SocialNorms, mean probability"}, "tickformat": ".2f"},
        yaxis={"title": {"text": "Care, mean probability →"}, "tickformat": ".2f"},
        annotations=[*arrows, *_labels(nodes, names, silent)],
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
    )
    return as_json(figure)


def _controls(controls: Sequence[ControlNode]) -> list[Any]:
    """Small and grey: a movement that is no larger is none."""
    look = {"random": ("random, same KL", "x-thin"), "persona": ("persona as text", "diamond-open")}
    return [
        go.Scatter(
            x=[one.social_norms for one in found],
            y=[one.care for one in found],
            mode="markers",
            name=title,
            marker={"symbol": symbol, "size": 8, "color": NEUTRAL, "line": {"width": 1.5, "color": NEUTRAL}},
            hovertemplate="Care %{y:.3f}, SocialNorms %{x:.3f}",
        )
        for kind, (title, symbol) in look.items()
        if (found := [one for one in controls if one.kind == kind])
    ]


HEALTH = {
    "agreement": "answers' agreement",
    "relevance": "relevance, nats a token",
    "diversity": "distinct bigrams",
    "facts_kept": "facts kept",
}
"""What a run's movement may cost, by its key in the round's path."""


def health(detail: RoundDetail) -> dict[str, Any]:
    """Movement of the trait against health: steering alone as a line, the rounds as numbered squares.

    A round above the line is healthier than steering that moves as far.
    """
    path = detail.facts.get("path") or []
    figure = make_subplots(rows=1, cols=len(HEALTH), subplot_titles=list(HEALTH.values()))
    steered = sorted((p for p in path if p["stage"] != "healed"), key=lambda p: p["movement"])
    healed = [p for p in path if p["stage"] == "healed"]
    for column, key in enumerate(HEALTH, start=1):
        for points, name, trace in (
            (steered, "steering", {"mode": "lines+markers", "line": {"color": STEERED}}),
            (healed, "rounds", {"mode": "lines+markers+text", "line": {"color": HEALED, "dash": "dot"}}),
        ):
            known = [p for p in points if p.get(key) is not None]
            figure.add_trace(
                go.Scatter(
                    x=[p["movement"] for p in known],
                    y=[p[key] for p in known],
                    name=name,
                    text=[str(p["round"]) if name == "rounds" else f"alpha {p['alpha']:g}" for p in known],
                    textposition="middle center",
                    textfont={"size": 10, "color": "white"},
                    hovertemplate="%{text}: movement %{x:.2f}, %{y:.2f}",
                    marker={"size": 15, "symbol": "square"} if name == "rounds" else {"size": 8},
                    showlegend=column == 1,
                    **trace,
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title={"text": "movement"})
    figure.update_layout(
        margin={"l": 40, "r": 12, "t": 40, "b": 44},
        legend={"orientation": "h", "x": 0, "y": -0.25},
        hovermode="closest",
    )
    return as_json(figure)


def losses(detail: RoundDetail) -> dict[str, Any]:
    """Training curves of a round against the step: loss and its parts, in nats per token."""
    figure = go.Figure()
    for key, (name, colour, dash) in CURVES.items():
        points = [(row["step"], row[key]) for row in detail.losses if key in row and "step" in row]
        if points:
            x, y = zip(*points, strict=True)
            line = {"color": colour, "width": 1.5, "dash": dash}
            mode = "lines+markers" if key == "held_out_nll" else "lines"
            figure.add_trace(go.Scatter(x=x, y=y, mode=mode, name=name, line=line))
    figure.update_layout(
        xaxis={"title": {"text": "training step"}},
        yaxis={"title": {"text": "nats per token"}, "rangemode": "tozero"},
        margin={"l": 56, "r": 16, "t": 8, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="x unified",
    )
    return as_json(figure)
