"""Records to plotly figures as plain JSON, pure. The browser sets the colours of text and grid."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from components.palette import HEALED, INK, NEUTRAL, STAGE_COLOURS, STEERED
from steer_heal.records import ControlNode, MapNode, RoundDetail, Trait

HUMAN_CLASSIC = {"Care": 0.198, "SocialNorms": 0.193}
SYMBOLS = {"base": "circle", "steered": "diamond", "healed": "square"}
MARK = (0.05, 0.07)
"""What a mark takes of the nodes' reach, across and upwards."""
SIZES = {"base": 16, "steered": 18, "healed": 19}
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


@dataclass(frozen=True)
class Axes:
    """What the map shows: the foundation or pole across and the one upwards, and of which trait in words.
    More trait is left where `left`, up where `up`."""

    x: str = "SocialNorms"
    y: str = "Care"
    title: str = ""
    left: bool = True
    up: bool = True

    @classmethod
    def of(cls, trait: Trait | None, nodes: Sequence[MapNode] = ()) -> Axes:
        """The axes that a trait moves along: foundations, or its own two poles. Of one that was deleted the
        poles are those of its nodes."""
        if trait is None:
            poles = next((list(node.profile) for node in nodes if len(node.profile) == 2), None)
            if poles:
                return cls(poles[1], poles[0], " over ".join(poles))
            return cls(left=False, up=False)
        x, y = (next((name for name, by in trait.target.items() if by == sign), None) for sign in (-1, 1))
        usual = [name for name in (cls.x, cls.y) if name not in (x, y)]
        return cls(x or usual[0], y or usual[-1], trait.title, x is not None, y is not None)

    def caption(self) -> str:
        """Which way is more of the trait, in words."""
        ways = " and ".join(way for way, so in (("up", self.up), ("left", self.left)) if so)
        return f"more of {self.title.lower()} is {ways}" if ways else f"{self.y} against {self.x}"

    def of_node(self, node: MapNode | ControlNode) -> tuple[float | None, float | None]:
        """Where a node lies, across and upwards."""
        known = {"Care": node.care, "SocialNorms": node.social_norms, **node.profile}
        return known.get(self.x), known.get(self.y)


@dataclass(frozen=True)
class Look:
    """What the map is drawn with: each run's letter and name, the axes, the model that is loaded, the round
    that is open."""

    letters: Mapping[str, str]
    names: Mapping[str, str]
    axes: Axes = Axes()
    model: str = ""
    selected: tuple[str, int] | None = None


def plain(text: str) -> str:
    """`text` so that plotly shows it as it is; it knows quotes as they are, and not their names."""
    return escape(text, quote=False)


def hover(node: MapNode, name: str, axes: Axes = Axes()) -> str:
    """Everything about a node, a line each."""
    x, y = axes.of_node(node)
    lines = [
        f"<b>{plain(name)}</b>" + (" (example)" if node.is_example else ""),
        "base" if node.stage == "base" else f"round {node.round}, {node.stage} at alpha {node.alpha:g}",
        ", ".join(f"{plain(n)} {v:.3f}" for n, v in ((axes.y, y), (axes.x, x)) if v is not None),
        f"{node.n_vignettes} vignettes"
        if node.coherence is None
        else f"coherence {node.coherence:.3f} over {node.n_vignettes} vignettes",
    ]
    if said := node.worth.sentence(plain(node.frame or "")):
        lines.append(said)
    if node.retention is not None:
        lines.append(f"retention {node.retention:.2f}")
    lines += [f"of the mix {plain(node.mix)}"] if node.mix else []
    lines.append(f"{plain(node.model)}, seed {node.seed}")
    lines.append(time.strftime("%d %b %Y %H:%M", time.localtime(node.finished_at)))
    return "<br>".join(lines)


def _labels(nodes: Sequence[MapNode], look: Look) -> dict[tuple[str, int, str], str]:
    """What is written on a mark, by its node: its run's letter, of a healed one its round too. Of marks that
    hide one another one has a name, healed ones before steered ones, with a plus where it hides other healed
    ones. Base is one for all runs of a model, and needs none."""
    places = [(n, *look.axes.of_node(n)) for n in nodes]
    known = [(n, x, y) for n, x, y in places if x is not None and y is not None]
    wide, high = (
        max(c, default=1) - min(c, default=0) for c in ([x for _, x, _ in known], [y for *_, y in known])
    )
    written: list[tuple[MapNode, float, float, list[str]]] = []
    for n, x, y in sorted((place for place in known if place[0].stage != "base"), key=lambda p: p[0].stage):
        letter = look.letters.get(n.run_id, "")
        name = f"{letter}{n.round}" if n.stage == "healed" else letter
        over = (
            names for _, a, b, names in written
            if abs(x - a) <= MARK[0] * wide and abs(y - b) <= MARK[1] * high
        )  # fmt: skip
        if (names := next(over, None)) is None:
            written.append((n, x, y, [name]))
        elif n.stage == "healed" and name not in names:
            names.append(name)
    return {
        (n.run_id, n.round, n.stage): names[0] + ("+" if len(names) > 1 else "") for n, _, _, names in written
    }


def _stage_trace(
    stage: str,
    nodes: Sequence[MapNode],
    look: Look,
    silent: Collection[str],
    labels: Mapping[tuple[str, int, str], str],
) -> Any:
    """All nodes of one stage, with their `labels`; hollow where the run is of another model. The open round's
    are ringed."""
    ringed = [look.selected == (n.run_id, n.round) for n in nodes]
    hollow = [bool(look.model) and n.model != look.model for n in nodes]
    places = [look.axes.of_node(n) for n in nodes]
    return go.Scatter(
        x=[x for x, _ in places],
        y=[y for _, y in places],
        mode="markers+text",
        name=stage,
        legendgroup=stage,
        text=[labels.get((n.run_id, n.round, n.stage), "") for n in nodes],
        textfont={"size": 10, "color": INK},
        hovertext=[hover(n, look.names.get(n.run_id) or n.run_id, look.axes) for n in nodes],
        hoverinfo="text",
        customdata=[[n.run_id, n.round, n.stage] for n in nodes],
        marker={
            "size": [SIZES[stage] + 4 * r for r in ringed],
            "symbol": SYMBOLS[stage],
            "color": ["white" if h else STAGE_COLOURS[stage] for h in hollow],
            "opacity": [shade(0.0 if n.run_id in silent else n.coherence) for n in nodes],
            "line": {
                "width": [3 if r else 2 if h else 1 for r, h in zip(ringed, hollow, strict=True)],
                "color": [
                    NEUTRAL if r else STAGE_COLOURS[stage] if h else "white"
                    for r, h in zip(ringed, hollow, strict=True)
                ],
            },
        },
    )


def _paths(nodes: Sequence[MapNode], axes: Axes) -> list[Any]:
    """Dotted: what steering did from where the round began. Arrow: to healed, from steered or, where a round
    has none, from the round before."""
    by = {(n.run_id, n.round, n.stage): n for n in nodes}
    ways: dict[str, list[tuple[float | None, float | None]]] = {"steered": [], "healed": []}
    for (run_id, number, stage), node in by.items():
        before = by.get((run_id, number - 1, "healed")) or by.get((run_id, 0, "base"))
        start = before if stage == "steered" else by.get((run_id, number, "steered")) or before
        if stage in ways and start is not None:
            ways[stage] += [axes.of_node(start), axes.of_node(node), (None, None)]
    arrow = {"symbol": "arrow", "angleref": "previous", "size": [1, 12, 1] * (len(ways["healed"]) // 3)}
    looks = {
        "steered": {"mode": "lines", "line": {"dash": "dot", "width": 1.2, "color": STEERED}},
        "healed": {
            "mode": "lines+markers",
            "line": {"width": 1.5, "color": HEALED},
            "marker": {**arrow, "color": HEALED, "opacity": 1, "standoff": 9},
        },
    }
    return [
        go.Scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            hoverinfo="skip",
            showlegend=False,
            legendgroup=stage,
            **looks[stage],
        )
        for stage, points in ways.items()
        if points
    ]


def moral_map(nodes: Sequence[MapNode], look: Look, controls: Sequence[ControlNode] = ()) -> dict[str, Any]:
    """One foundation or pole upwards against another, of one trait. Without nodes it has no traces.

    `controls`: what random directions of the same KL, and the persona as text, do to the base. The rows
    behind it stand in `layout.meta`.
    """
    figure, axes = go.Figure(), look.axes
    silent = {n.run_id for n in nodes if n.stage == "base" and n.worth.cannot_answer}
    labels = _labels(nodes, look)
    for stage in STAGE_COLOURS:
        found = [n for n in nodes if n.stage == stage]
        if found:
            figure.add_trace(_stage_trace(stage, found, look, silent, labels))
        if stage == "base":  # under what steering and healing did
            figure.add_traces([*_controls(controls, axes), *_paths(nodes, axes)])
    if any(n.vignette_set == "classic" for n in nodes) and (axes.x, axes.y) == (Axes.x, Axes.y):
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
    placed = any(x is not None and y is not None for x, y in map(axes.of_node, nodes))
    reach = {"tickformat": ".2f"} | ({} if placed else {"range": [0, 1]})
    left, up = ("← " if axes.left else "", " →" if axes.up else "")
    figure.update_layout(
        xaxis={"title": {"text": f"{left}{plain(axes.x)}, mean probability"}, **reach},
        yaxis={"title": {"text": f"{plain(axes.y)}, mean probability{up}"}, **reach},
        shapes=_band(controls, axes),
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
        meta=[{**asdict(n), "name": look.names.get(n.run_id, "")} for n in nodes],
    )
    return as_json(figure)


def _controls(controls: Sequence[ControlNode], axes: Axes) -> list[Any]:
    """Small and grey: a movement that is no larger is none."""
    look = {"random": ("random, same KL", "x-thin"), "persona": ("persona as text", "diamond-open")}
    return [
        go.Scatter(
            x=[axes.of_node(one)[0] for one in found],
            y=[axes.of_node(one)[1] for one in found],
            mode="markers",
            name=title,
            marker={"symbol": symbol, "size": 8, "color": NEUTRAL, "line": {"width": 1.5, "color": NEUTRAL}},
            hovertemplate=f"{plain(axes.y)} %{{y:.3f}}, {plain(axes.x)} %{{x:.3f}}",
        )
        for kind, (title, symbol) in look.items()
        if (found := [one for one in controls if one.kind == kind])
    ]


def _band(controls: Sequence[ControlNode], axes: Axes) -> list[dict[str, Any]]:
    """How far the random directions reach, across and upwards: what ends inside is no more than chance."""
    places = [axes.of_node(one) for one in controls if one.kind == "random"]
    known = [(x, y) for x, y in places if x is not None and y is not None]
    if len(known) < 2:
        return []
    xs, ys = zip(*known, strict=True)
    ends = {"x0": min(xs), "x1": max(xs), "y0": min(ys), "y1": max(ys)}
    look = {"type": "rect", "layer": "below", "fillcolor": NEUTRAL, "opacity": 0.16, "line": {"width": 0}}
    return [ends | look]


HEALTH = {
    "agreement": "answers' agreement",
    "relevance": "relevance, nats a token",
    "diversity": "distinct bigrams",
    "facts_kept": "facts kept",
}
"""What a run's movement may cost, by its key in the round's path."""


def health(detail: RoundDetail) -> dict[str, Any]:
    """Movement of the trait against health: steering alone as a line, the rounds as numbered squares.

    A round above the line is healthier than steering that moves as far. Two charts beside one another is as
    many as a phone has room for.
    """
    path = detail.facts.get("path") or []
    known = [key for key in HEALTH if any(p.get(key) is not None for p in path)] or list(HEALTH)
    places = [[{}, {} if number + 1 < len(known) else None] for number in range(0, len(known), 2)]
    titles = [HEALTH[key] for key in known]
    figure = make_subplots(len(places), 2, specs=places, subplot_titles=titles, vertical_spacing=0.22)
    figure.update_annotations(font_size=12)
    steered = sorted((p for p in path if p["stage"] != "healed"), key=lambda p: p["movement"])
    healed = [p for p in path if p["stage"] == "healed"]
    for number, key in enumerate(known):
        for points, name, trace in (
            (steered, "steering", {"mode": "lines+markers", "line": {"color": STEERED}}),
            (healed, "rounds", {"mode": "lines+markers+text", "line": {"color": HEALED, "dash": "dot"}}),
        ):
            measured = [p for p in points if p.get(key) is not None]
            figure.add_trace(
                go.Scatter(
                    x=[p["movement"] for p in measured],
                    y=[p[key] for p in measured],
                    name=name,
                    text=[str(p["round"]) if name == "rounds" else f"alpha {p['alpha']:g}" for p in measured],
                    textposition="middle center",
                    textfont={"size": 10, "color": "white"},
                    hovertemplate="%{text}: movement %{x:.2f}, %{y:.2f}",
                    marker={"size": 15, "symbol": "square"} if name == "rounds" else {"size": 8},
                    showlegend=number == 0,
                    **trace,
                ),
                row=1 + number // 2,
                col=1 + number % 2,
            )
    figure.update_xaxes(title={"text": "movement", "standoff": 4, "font": {"size": 12}})
    figure.update_layout(
        margin={"l": 40, "r": 12, "t": 40, "b": 64},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
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
