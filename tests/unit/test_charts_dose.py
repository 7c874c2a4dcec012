"""Sweeps and grids to figures: what is drawn where, and what a click on it carries."""

import json
import math
from dataclasses import replace

import pytest

from components import charts_dose
from steer_heal.config import DoseRequest, build
from steer_heal.records import Agreement, Sweep
from tests.fake_engine import FakeEngine

TARGET = {"Care": 1, "SocialNorms": -1}


def sweep(n_prompts: int) -> Sweep:
    asked = build(DoseRequest, prompts=tuple("abcdefg"[:n_prompts]), refine=True)
    return list(FakeEngine(delay=0.0).dose(asked, session="x"))[-1]


def trace(figure: dict, name: str) -> dict:
    return next(t for t in figure["data"] if t["name"] == name)


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
