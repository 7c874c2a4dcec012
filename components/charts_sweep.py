"""A sweep's settings as movement against damage, and the Pareto front of them, pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from components.charts import as_json, plain
from components.palette import HEALED, NEUTRAL
from steer_heal.config.axes import in_words
from steer_heal.records import ControlNode, MapNode, SweepTable, trait_shift

DAMAGE, MOVEMENT = "neutral_kl", "movement"
LINES = {"random": ("furthest random direction", "dot"), "persona": ("persona as text", "dash")}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of the points (damage, movement) no other equals with less damage or more movement, by damage."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, found = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            found.append(i)
    return found


def held_against(
    nodes: Sequence[MapNode], controls: Sequence[ControlNode], targets: Mapping[str, dict[str, int]]
) -> dict[str, float]:
    """How far at most a random direction, and the persona as text, moved the trait of one of these runs from
    its base, where that was measured. `targets` by trait."""
    base = {node.run_id: node for node in nodes if node.stage == "base"}
    found: dict[str, float] = {}
    for one in controls:
        start = base.get(one.run_id)
        target = targets.get(start.trait) if start else None
        if start and target and target.keys() <= start.profile.keys() & one.profile.keys():
            moved = trait_shift(one.profile, start.profile, target)
            found[one.kind] = max(moved, found.get(one.kind, moved))
    return found


def chart(table: SweepTable, controls: Mapping[str, float]) -> dict[str, Any]:
    """Each setting's mean as a square with its number in the table, bars are standard deviations over seeds;
    dots are single runs, which open on a click. The line is the front: no other setting moves the trait as
    far at as little damage. `controls` as of `held_against`."""
    figure = go.Figure()
    runs = [row for row in table.last if _place(row) is not None]
    known = [
        (number, one, place) for number, one in enumerate(table.groups, 1) if (place := _place(one.mean))
    ]
    if not known:
        return as_json(figure)
    groups, places = [(number, one) for number, one, _ in known], [place for *_, place in known]
    best = [places[i] for i in front(places)]
    figure.add_scatter(
        x=[x for x, _ in best], y=[y for _, y in best], name="front", mode="lines", hoverinfo="skip",
        line={"color": HEALED, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    figure.add_scatter(
        x=[row[DAMAGE] for row in runs], y=[row[MOVEMENT] for row in runs], name="runs", mode="markers",
        marker={"size": 8, "color": HEALED, "opacity": 0.4},
        text=[plain(in_words(row["varied"])) for row in runs],
        customdata=[[row["run_id"], row["round"], "healed"] for row in runs],
        hovertemplate="%{text}<br>movement %{y:.3f}, damage %{x:.3f}<extra></extra>",
    )  # fmt: skip
    bars = {"color": NEUTRAL, "thickness": 1, "width": 3}
    figure.add_scatter(
        x=[x for x, _ in places], y=[y for _, y in places], name="settings", mode="markers+text",
        marker={"size": 19, "symbol": "square", "color": HEALED},
        text=[str(number) for number, _ in groups], textfont={"size": 10, "color": "white"},
        error_x={"array": [one.spread[DAMAGE] for _, one in groups], **bars},
        error_y={"array": [one.spread[MOVEMENT] for _, one in groups], **bars},
        hovertext=[plain(in_words(one.values) or "all") for _, one in groups],
        hovertemplate="%{hovertext}<br>movement %{y:.3f}, damage %{x:.3f}<extra></extra>",
    )  # fmt: skip
    right = max(x for x, _ in (*places, *filter(None, map(_place, runs))))
    for kind, level in controls.items():
        name, dash = LINES[kind]
        figure.add_scatter(
            x=[0.0, right], y=[level, level], name=name, mode="lines", hoverinfo="skip",
            line={"color": NEUTRAL, "width": 1.2, "dash": dash},
        )  # fmt: skip
    figure.update_layout(
        xaxis={"title": {"text": "damage: neutral KL, nats a token"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "movement of the trait"}},
        margin={"l": 56, "r": 12, "t": 8, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        hovermode="closest",
    )  # fmt: skip
    return as_json(figure)


def _place(of: Mapping[str, Any]) -> tuple[float, float] | None:
    damage, movement = of[DAMAGE], of[MOVEMENT]
    return None if damage is None or movement is None else (damage, movement)
