"""Records, sweeps and grids to figures: what is drawn where, and nothing that a browser would run."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from components import charts, charts_dose, palette
from steer_heal.config import DoseRequest, build
from steer_heal.records import Agreement, MapNode, Sweep, Trait
from tests.fake_engine import FakeEngine
from tests.fake_runs import EXAMPLE

BASE = MapNode("run-1", "demo", "care", 0, 0, "base", 0.0, 0.25, 0.65, 0.99, 98, 0.0, None, False)
STEERED = replace(BASE, round=1, stage="steered", alpha=1.0, care=0.35, social_norms=0.52)
HEALED = replace(STEERED, stage="healed", alpha=0.0, care=0.34, social_norms=0.54, retention=0.9)
NODES = [BASE, STEERED, HEALED]
WORTH = {"agreement_low": 0.46, "agreement_high": 0.6, "chance": 1 / 7}


def drawn(nodes: list[MapNode], selected: tuple[str, int] | None = None, **more: Any) -> dict:
    look = charts.Look({"run-1": "A", "run-2": "B"}, {"run-1": "mine"}, selected=selected, **more)
    return charts.moral_map(nodes, look)


def trace(figure: dict, name: str) -> dict:
    return next(t for t in figure["data"] if t.get("name") == name)


def test_nodes_stand_at_social_norms_and_care() -> None:
    figure = drawn(NODES)
    assert (trace(figure, "base")["x"], trace(figure, "base")["y"]) == ([0.65], [0.25])
    assert trace(figure, "healed")["customdata"] == [["run-1", 1, "healed"]]
    assert json.loads(json.dumps(figure)) == figure
    assert "range" not in figure["layout"]["xaxis"]
    nowhere = drawn([replace(one, care=None, social_norms=None) for one in NODES])["layout"]
    assert nowhere["xaxis"]["range"] == nowhere["yaxis"]["range"] == [0, 1]


def test_paths_go_from_stage_to_stage_and_are_hidden_with_their_marks() -> None:
    """An arrow from steered to healed; the next round starts where the one before was healed to."""
    figure = drawn([*NODES, replace(STEERED, round=2, social_norms=0.40)])
    steering, healing = (t for t in figure["data"] if t.get("hoverinfo") == "skip")
    assert steering["x"] == [0.65, 0.52, None, 0.54, 0.40, None]
    assert (healing["x"], healing["y"]) == ([0.52, 0.54, None], [0.35, 0.34, None])
    assert (healing["marker"]["symbol"], healing["marker"]["size"]) == ("arrow", [1, 12, 1])
    for path, stage in ((steering, "steered"), (healing, "healed")):
        assert path["legendgroup"] == trace(figure, stage)["legendgroup"] == stage


def test_every_run_has_its_letter_where_there_is_room_and_other_models_are_hollow() -> None:
    other = replace(HEALED, run_id="run-2", model="smollm2", care=0.5)
    near = replace(HEALED, run_id="run-2", care=0.3401)
    figure = drawn([*NODES, other], model="demo")
    assert trace(figure, "healed")["text"] == ["A1", "B1"]
    assert trace(figure, "healed")["marker"]["color"] == [palette.HEALED, "white"]
    assert trace(drawn([*NODES, near]), "healed")["text"] == ["A1+", ""]
    crowd = [replace(HEALED, run_id="run-2", round=n) for n in (1, 2, 3)]
    assert trace(drawn([*NODES, *crowd]), "healed")["text"] == ["A1+", "", "", ""]


def test_axes_and_caption_follow_the_trait() -> None:
    fairness = Trait("f", "Fairness over loyalty", "", "", "", {"Fairness": 1, "Loyalty": -1})
    axes = charts.Axes.of(fairness)
    node = replace(BASE, profile={"Fairness": 0.2, "Loyalty": 0.1})
    figure = drawn([node], axes=axes)
    assert (trace(figure, "base")["x"], trace(figure, "base")["y"]) == ([0.1], [0.2])
    assert "Loyalty" in figure["layout"]["xaxis"]["title"]["text"]
    assert axes.caption() == "more of fairness over loyalty is up and left"
    unknown = charts.Axes.of(None)
    assert (unknown.x, unknown.y, unknown.caption()) == ("SocialNorms", "Care", "Care against SocialNorms")


def test_a_trait_on_its_own_axis_has_its_poles_for_axes() -> None:
    formal = Trait("f", "Formal over <b>", "", "", "", {"formal": 1, "<b>": -1})
    own = replace(BASE, care=None, social_norms=None, profile={"formal": 0.8, "<b>": 0.2})
    figure = drawn([own, HEALED], axes=charts.Axes.of(formal))
    assert (trace(figure, "base")["x"], trace(figure, "base")["y"]) == ([0.2], [0.8])
    assert (trace(figure, "healed")["x"], trace(figure, "healed")["y"]) == ([None], [None])
    assert figure["layout"]["xaxis"]["title"]["text"] == "← &lt;b&gt;, mean probability"


def test_a_trait_that_was_deleted_leaves_its_runs_their_axes() -> None:
    own = replace(BASE, care=None, social_norms=None, profile={"formal": 0.8, "<b>": 0.2})
    assert charts.Axes.of(None, [own]) == charts.Axes("<b>", "formal", "formal over <b>")
    assert charts.Axes.of(None, [BASE]) == charts.Axes(left=False, up=False)


def test_the_random_directions_have_a_band() -> None:
    held = FakeEngine().runs.controls([EXAMPLE])
    (band,) = charts.moral_map(NODES, charts.Look({}, {}), held)["layout"]["shapes"]
    assert [band[end] for end in ("x0", "x1", "y0", "y1")] == pytest.approx([0.635, 0.68, 0.22, 0.28])


def test_hover_says_everything_escaped_once() -> None:
    text = charts.hover(replace(HEALED, is_example=True, frame="cl<oze", agreement=0.53, **WORTH), '"q" <a>')
    assert text.startswith('<b>"q" &lt;a&gt;</b> (example)')
    worth = "agreement 0.53 (0.46-0.60), chance 0.14, frame cl&lt;oze"
    for part in ("Care 0.340", "SocialNorms 0.540", "coherence 0.990", "98", "0.90", worth):
        assert part in text
    assert "of the mix a - &lt;b" in charts.hover(replace(HEALED, mix="a - <b"), "mine")
    assert "coherence" not in charts.hover(replace(HEALED, coherence=None), "mine")


def test_less_coherent_is_fainter() -> None:
    assert charts.shade(0.5) < charts.shade(0.7) < charts.shade(0.99) <= charts.shade(None) == 1.0
    figure = drawn([replace(BASE, coherence=0.7)])
    assert trace(figure, "base")["marker"]["opacity"] == [charts.shade(0.7)]


def test_the_selected_round_is_ringed() -> None:
    marker = trace(drawn(NODES, ("run-1", 1)), "healed")["marker"]
    assert marker["line"]["width"] == [3]
    assert trace(drawn(NODES, ("run-1", 2)), "healed")["marker"]["line"]["width"] == [1]


def test_people_are_shown_only_where_the_classic_set_was_used() -> None:
    ours = drawn(NODES)
    assert all("people" not in (t.get("name") or "") for t in ours["data"])
    classic = drawn([replace(BASE, vignette_set="classic")])
    people = trace(classic, "people (published)")
    assert (people["x"], people["y"]) == ([0.193], [0.198])


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
    facts = [t for t in figure["data"] if t["xaxis"] == "x2"]
    assert [t["y"] for t in facts] == [[1.0], [0.9]], "what was not measured is no point, and no panel"


def test_losses_have_a_line_each() -> None:
    detail = FakeEngine().runs.round(EXAMPLE, 1)
    figure = charts.losses(detail)
    assert [t["name"] for t in figure["data"]] == ["loss", "NLL", "divergence"]
    assert len(figure["data"][0]["x"]) == len(detail.losses)
    assert charts.losses(replace(detail, losses=()))["data"] == []


def test_a_run_whose_model_cannot_answer_is_faint_and_says_so() -> None:
    silent = replace(BASE, agreement=0.15, agreement_low=0.1, agreement_high=0.2, chance=1 / 7)
    assert trace(drawn([silent, STEERED, HEALED]), "healed")["marker"]["opacity"] == [charts.shade(0.0)]
    assert "this model cannot answer this question" in charts.hover(silent, "mine")
    shown = drawn([replace(silent, agreement_low=0.15), STEERED, HEALED])
    assert trace(shown, "healed")["marker"]["opacity"] == [charts.shade(0.99)]


TARGET = {"Care": 1, "SocialNorms": -1}


def sweep(n_prompts: int) -> Sweep:
    asked = build(DoseRequest, prompts=tuple("abcdefg"[:n_prompts]), refine=True)
    return list(FakeEngine(delay=0.0).dose(asked, session="x"))[-1]


def test_measures_stand_over_one_axis_and_every_point_carries_its_alpha() -> None:
    found = sweep(1)
    rows, figure = found.rows, charts_dose.dose(found, TARGET)
    assert len({t["yaxis"] for t in figure["data"]}) == 6
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert all("xaxis" not in t for t in figure["data"])
    for drawn in figure["data"]:
        assert drawn["x"] == [r.alpha for r in rows]
        assert [point["alpha"] for point in drawn["customdata"]] == drawn["x"]
    assert trace(figure, "repetition")["y"] == [r.repetition for r in rows]
    assert json.loads(json.dumps(figure)) == figure


def test_breaks_are_marked_with_words() -> None:
    found = sweep(1)
    figure = charts_dose.dose(found, TARGET)
    upright = [s["x0"] for s in figure["layout"]["shapes"] if s["xref"] == "x"]
    assert upright == list(found.breaks.values())
    assert list(found.breaks) == ["damaged", "broken", "lost"]
    words = " ".join(a["text"] for a in figure["layout"]["annotations"])
    assert f"text damaged from {upright[0]:g}" in words
    assert f"answers lost from {upright[2]:g}" in words


def test_what_controls_move_lies_behind_the_trait_s_movement() -> None:
    found = sweep(1)
    figure = charts_dose.dose(found, TARGET)
    (band,) = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert band["yref"] == trace(figure, "trait movement")["yaxis"]
    shifts = found.controls.shifts(TARGET)
    assert (band["y0"], band["y1"]) == (min(shifts), max(shifts))
    (told,) = [shape for shape in figure["layout"]["shapes"] if shape.get("name") == "persona"]
    assert told["y0"] == found.controls.persona_shift(TARGET)
    alone = charts_dose.dose(replace(found, controls=None), TARGET)
    assert not [shape for shape in alone["layout"]["shapes"] if shape["type"] == "rect"]


def test_the_band_is_the_quartiles_over_the_vignettes_of_a_set() -> None:
    found = sweep(7)
    rows = found.rows
    bands = [t for t in charts_dose.dose(found, TARGET)["data"] if t.get("fill")]
    assert len(bands) == 5, "relevance of single texts is not known here"
    assert all(t["hoverinfo"] == "skip" for t in bands)
    last = rows[-1].profile
    low, high = charts_dose.spread([v.mass for v in last.per_vignette]) or (0.0, 0.0)
    assert (high, low) == (bands[-1]["y"][len(rows) - 1], bands[-1]["y"][len(rows)])


@pytest.mark.parametrize(
    ("values", "quartiles"),
    [([1.0, 2.0], None), ([1.0, 2.0, 3.0, 4.0, 5.0], (2.0, 4.0)), ([1.0, 2.0, math.inf], None)],
)
def test_spread(values: list[float], quartiles: tuple[float, float] | None) -> None:
    assert charts_dose.spread(values) == quartiles


def test_what_was_not_measured_is_not_drawn() -> None:
    rows = [replace(r, kl_p95=None if r.alpha < 1 else math.inf) for r in sweep(1).rows]
    assert trace(charts_dose.dose(Sweep(1.0, rows), TARGET), "95th percentile of KL, nats")["x"] == []
    assert charts_dose.dose(Sweep(0.0, []), TARGET)["data"] == []
    assert charts_dose.grid([], lambda band: [0])["data"] == []


def test_a_grid_has_its_measures_and_cells_that_carry_alpha_and_band() -> None:
    engine = FakeEngine(delay=0.0)
    cells = list(engine.grid(build(DoseRequest, alphas=(-1.0, 0.0, 1.0)), session="x"))[-1].rows
    figure = charts_dose.grid(cells, engine.layers)
    moved, text, mass = figure["data"]
    words = list(charts_dose.WORDS)
    assert text["z"][3][1] == words.index(cells[3 * 3 + 1].verdict)
    assert text["text"][3][1] == cells[3 * 3 + 1].verdict
    assert text["colorbar"]["ticktext"] == words
    agreed = replace(cells[0].profile, agreement=Agreement(0.5, 0.4, 0.6, 1 / 7))
    worth = charts_dose.grid([replace(cells[0], profile=agreed, verdict=None)], engine.layers)["data"]
    assert [t["name"] for t in worth] == ["trait movement", "agreement with the labels"]
    assert worth[1]["z"] == [[0.5]]
    assert moved["x"] == ["-1", "0", "1"]
    assert moved["y"] == [*map(str, range(10)), *(f"{i}–{i + 2}" for i in range(8))]
    assert moved["zmin"] == -moved["zmax"]
    assert moved["customdata"][10][2] == {"alpha": 1.0, "low": 0.0, "high": 0.3}
    assert mass["z"][3][1] == cells[3 * 3 + 1].coherence


def test_cells_not_yet_measured_are_gaps() -> None:
    engine = FakeEngine(delay=0.0)
    cells = list(engine.grid(build(DoseRequest, alphas=(-1.0, 1.0)), session="x"))[-1].rows[:3]
    moved = charts_dose.grid(cells, engine.layers)["data"][0]
    assert moved["z"][1][1] is None
    assert moved["customdata"][1][1] is None
