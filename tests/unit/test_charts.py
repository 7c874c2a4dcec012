"""Records to figures: what is drawn where, and nothing that a browser would run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from components import charts
from steer_heal.records import MapNode
from tests.fake_engine import FakeEngine
from tests.fake_runs import EXAMPLE

BASE = MapNode("run-1", "demo", "care", 0, 0, "base", 0.0, 0.25, 0.65, 0.99, 98, 0.0, None, False)
STEERED = replace(BASE, round=1, stage="steered", alpha=1.0, care=0.35, social_norms=0.52)
HEALED = replace(STEERED, stage="healed", alpha=0.0, care=0.34, social_norms=0.54, retention=0.9)
NODES = [BASE, STEERED, HEALED]


def trace(figure: dict, name: str) -> dict:
    return next(t for t in figure["data"] if t.get("name") == name)


def test_nodes_stand_at_social_norms_and_care() -> None:
    figure = charts.moral_map(NODES, {"run-1": "mine"})
    assert (trace(figure, "base")["x"], trace(figure, "base")["y"]) == ([0.65], [0.25])
    assert trace(figure, "healed")["customdata"] == [["run-1", 1, "healed"]]
    assert json.loads(json.dumps(figure)) == figure


def test_an_arrow_goes_from_steered_to_healed() -> None:
    arrows = [a for a in charts.moral_map(NODES, {})["layout"]["annotations"] if a.get("showarrow")]
    assert [(a["ax"], a["ay"], a["x"], a["y"]) for a in arrows] == [(0.52, 0.35, 0.54, 0.34)]


def test_the_next_round_starts_from_the_healed_node() -> None:
    second = replace(STEERED, round=2, social_norms=0.40)
    line = next(t for t in charts.moral_map([*NODES, second], {})["data"] if t.get("mode") == "lines")
    assert line["x"] == [0.65, 0.52, None, 0.54, 0.40, None]


def test_hover_says_everything_escaped() -> None:
    text = charts.hover(replace(HEALED, is_example=True), "<b>evil</b>")
    assert "<b>evil" not in text
    for part in (
        "&lt;b&gt;evil",
        "(example)",
        "Care 0.340",
        "SocialNorms 0.540",
        "coherence 0.990",
        "98",
        "0.90",
    ):
        assert part in text


def test_a_name_on_the_map_is_text() -> None:
    figure = charts.moral_map(NODES, {"run-1": "<a href='javascript:x()'>run</a>"})
    assert "<a" not in json.dumps(figure["layout"]["annotations"])


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.7), (0.7, 0.99)])
def test_less_coherent_is_fainter(low: float, high: float) -> None:
    assert charts.shade(low) < charts.shade(high) <= 1.0
    figure = charts.moral_map([replace(BASE, coherence=low)], {})
    assert trace(figure, "base")["marker"]["opacity"] == [charts.shade(low)]


def test_the_selected_round_is_ringed() -> None:
    marker = trace(charts.moral_map(NODES, {}, ("run-1", 1)), "healed")["marker"]
    assert marker["line"]["width"] == [3]
    assert trace(charts.moral_map(NODES, {}, ("run-1", 2)), "healed")["marker"]["line"]["width"] == [0]


def test_people_are_shown_only_where_the_classic_set_was_used() -> None:
    ours = charts.moral_map(NODES, {})
    assert all("people" not in (t.get("name") or "") for t in ours["data"])
    classic = charts.moral_map([replace(BASE, vignette_set="classic")], {})
    people = trace(classic, "people (published)")
    assert (people["x"], people["y"]) == ([0.193], [0.198])


def test_no_nodes_no_traces() -> None:
    assert charts.moral_map([], {})["data"] == []


def test_movement_against_health_has_steering_as_a_line_and_the_rounds_as_squares() -> None:
    path = [
        {"stage": "base", "round": 0, "alpha": 0.0, "movement": 0.0, "agreement": 0.7, "facts_kept": 1.0},
        {"stage": "steered", "round": 1, "alpha": 1.0, "movement": 0.6, "agreement": 0.3, "facts_kept": None},
        {"stage": "healed", "round": 1, "alpha": 0.0, "movement": 0.5, "agreement": 0.4, "facts_kept": 0.9},
    ]
    detail = replace(FakeEngine().runs.round(EXAMPLE, 1), facts={"path": path})
    figure = charts.health(detail)
    steering, rounds = (t for t in figure["data"] if t["xaxis"] == "x")
    assert (steering["x"], steering["y"]) == ([0.0, 0.6], [0.7, 0.3])
    assert (rounds["x"], rounds["y"], rounds["text"]) == ([0.5], [0.4], ["1"])
    facts = [t for t in figure["data"] if t["xaxis"] == "x4"]
    assert [t["y"] for t in facts] == [[1.0], [0.9]], "what was not measured is no point"


def test_losses_have_a_line_each() -> None:
    detail = FakeEngine().runs.round(EXAMPLE, 1)
    figure = charts.losses(detail)
    assert [t["name"] for t in figure["data"]] == ["loss", "NLL", "divergence"]
    assert len(figure["data"][0]["x"]) == len(detail.losses)
    assert charts.losses(replace(detail, losses=()))["data"] == []


def test_a_node_says_what_it_is_worth() -> None:
    asked = replace(
        HEALED,
        coherence=None,
        agreement=0.53,
        frame="cl<oze",
        agreement_low=0.46,
        agreement_high=0.6,
        chance=1 / 7,
    )
    text = charts.hover(asked, "mine")
    assert "agreement 0.53 (0.46-0.60), chance 0.14, frame cl&lt;oze" in text
    assert "coherence" not in text
    assert charts.shade(None) == 1.0


def test_a_run_whose_model_cannot_answer_is_faint_and_says_so() -> None:
    silent = replace(BASE, agreement=0.15, agreement_low=0.1, agreement_high=0.2, chance=1 / 7)
    figure = charts.moral_map([silent, STEERED, HEALED], {"run-1": "mine"})
    assert trace(figure, "healed")["marker"]["opacity"] == [charts.shade(0.0)]
    (label,) = [note["text"] for note in figure["layout"]["annotations"] if note["text"]]
    assert label == "mine<br>this model cannot answer this question"
    shown = charts.moral_map([replace(silent, agreement_low=0.15), STEERED, HEALED], {"run-1": "mine"})
    assert trace(shown, "healed")["marker"]["opacity"] == [charts.shade(0.99)]
