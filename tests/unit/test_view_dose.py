"""The strip under the slider, what is remembered of sweeps, and the panel's handlers without a browser."""

import re
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from components import dose, view_dose
from components.controls import FORM
from steer_heal.config import DoseRequest, build
from steer_heal.records import Agreement, DoseRow, Profile, Sweep
from tests.fake_engine import FORM_VALUES, FakeEngine

DOSES = [[-2.0, "broken"], [0.0, "fine"], [1.0, "fine"], [3.0, "damaged"], [8.0, "broken"]]


def test_each_dose_speaks_for_what_is_nearest_to_it() -> None:
    assert view_dose.segments(DOSES) == [
        (-2.0, -1.0, "broken"),
        (-1.0, 2.0, "fine"),
        (2.0, 4.0, "damaged"),
    ]
    assert view_dose.segments(DOSES[:1]) == []


def test_the_strip_says_it_in_words_too() -> None:
    html = view_dose.strip({"here": DOSES}, "here")
    assert "alpha 2 to 4 damaged" in html
    assert 'class="sh-seg-fine" style="left:37.50%;width:37.50%"' in html
    assert "not measured" in view_dose.strip({"here": DOSES}, "elsewhere")


def test_the_layers_that_move_the_trait_most_are_named() -> None:
    def cell(band: tuple[float, float], moved: float | None, verdict: str = "fine", alpha: float = 1.0):
        return DoseRow(alpha, band, None, None, None, None, None, moved, verdict)  # type: ignore[arg-type]

    def layers(band: tuple[float, float]) -> tuple[int, ...]:
        return tuple(range(int(band[0]), int(band[1])))

    cells = [
        cell((0, 1), 0.1), cell((1, 2), 0.69), cell((2, 3), 0.7, "damaged"), cell((3, 4), 0.9, "broken"),
        cell((3, 4), 2.0, alpha=2.0), cell((0, 3), 0.5), cell((1, 4), 0.6),
    ]  # fmt: skip
    said = view_dose.layers_found(cells, layers)
    assert "layer 2 alone moves the trait most: +0.70, damaged; within 0.03 of it: 1. " in said
    assert "Of neighbours together 1 to 3 do: +0.60, fine" in said
    assert view_dose.layers_found([cell((0, 1), None)], layers) == ""


def test_a_browser_may_send_anything() -> None:
    odd = ([[1.0, "<b>"]], [["1", "broken"]], [[float("nan"), "broken"]], [[1.0, ["broken"]]])
    for value in (None, 3, [], {"a": 3}, *({"a": one} for one in odd)):
        assert view_dose.remembered(value) == {}


def test_the_newest_sweeps_are_remembered() -> None:
    rows = list(FakeEngine(delay=0.0).dose(build(DoseRequest), session="x"))[-1].rows
    kept: Any = None
    for number in range(view_dose.MAX_KNOWN + 3):
        kept = view_dose.remember(kept, str(number), rows)
    assert len(kept) == view_dose.MAX_KNOWN
    assert list(kept)[-1] == str(number)
    assert view_dose.remembered(kept) == kept


def pressed(handler: Any, over: str = dose.IN_VIEW, **changed: Any) -> Iterator[Any]:
    form = [{**FORM_VALUES, **changed}[name] for name in FORM]
    return handler(SimpleNamespace(session_hash="me"), over, {}, *form)


def notes(shown: Iterable[Any]) -> list[str]:
    return [row[1] for row in shown if isinstance(row[1], str)]


def test_a_mix_is_measured_as_it_is_steered_and_shown_beside_its_controls() -> None:
    panel, mix = dose.Panel(FakeEngine(delay=0.0)), "care_over_authority - 0.5 candour_over_tact @answer"
    *_, (_, note, strip, kept), _ = pressed(panel.handler(panel.sweep, 4), mix=mix)
    assert f", {mix}: the text is damaged" in note
    assert "of 8 random directions of the same KL move it as far" in note
    assert "Of the texts was steered: answer only; the trait" in note
    assert "sh-seg-broken" in strip
    assert f"|1 {mix}|" in next(iter(kept))
    *_, (shown, note), _ = pressed(panel.handler(panel.effect, 2), mix=mix)
    assert f", {mix}." in note
    assert "0 of 8 random directions of the same KL move it as far" in shown
    assert shown.count('class="sh-random"') == 7
    places = re.findall(r'class="sh-moved" style="left:(.+?)%;width:(.+?)%"', shown)
    assert len(places) == 7
    assert all(float(left) >= 0 and float(left) + float(width) <= 100 for left, width in places)
    assert "makes likelier: <b>help, &lt;b&gt;kind</b>" in shown
    assert "<td>A &lt;i&gt;scene&lt;/i&gt;?</td>" in shown


def test_a_set_asks_vignettes_of_every_foundation() -> None:
    asked = dose.Asked(FORM_VALUES | {"band": (0.4, 0.6)}, "7 vignettes", {}, "me")
    assert len(dose.Panel(FakeEngine()).request(asked, dose.SWEEP_ALPHAS, refine=True).prompts) == 7


@pytest.mark.parametrize(
    ("n", "says"), [(4, "Stopped: 2 doses measured."), (25, "random directions.*Stopped: 6 cells measured")]
)
def test_a_stop_ends_doses_and_layers(n: int, says: str) -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    shown = pressed(panel.handler(panel.made, 5))
    early = [next(shown) for _ in range(n)]
    panel.engine.stop(dose.work_of("me"))
    rest = notes([*early, *shown])
    assert re.search(says, rest[-1])
    assert any("cells measured" in note for note in rest) is (n > 4)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"low": None}, "a layer is empty"),
        ({"high": 10}, "leaves the model"),
    ],
)
def test_bad_input_is_one_sentence(changed: dict[str, Any], says: str) -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    *_, last = notes(pressed(panel.handler(panel.sweep, 4), **changed))
    assert says in last
    assert "sh-error" in last


def test_the_newer_press_takes_the_place_of_the_older() -> None:
    panel = dose.Panel(FakeEngine(delay=0.0))
    older = pressed(panel.handler(panel.sweep, 4))
    next(older)
    assert "126 cells" in notes(pressed(panel.handler(panel.grid, 2)))[-1]
    assert notes(older) == []


def test_a_click_sets_alpha_and_the_band() -> None:
    def click(**data: Any) -> Any:
        return dose.Panel(FakeEngine()).steer_to(SimpleNamespace(_data=data))  # pyright: ignore[reportArgumentType]

    assert click(alpha=6.0, low=0.1, high=0.4) == (4.0, 6.0, 1, 3)
    assert click(alpha=-2.0)[:2] == (-2.0, -2.0)
    assert all(not isinstance(value, float) for value in click(alpha="<b>"))


@pytest.mark.parametrize(
    ("word", "breaks", "agreement", "says"),
    [
        ("kept", {}, 0.9, "the text is fine up to alpha 1; answers are kept up to alpha 1."),
        ("lost", {"damaged": 0.5, "lost": 1}, 0.9, "damaged from alpha 0.5; answers are lost from alpha 1."),
        (None, {"broken": 1.0}, 0.9, "broken from alpha 1; agreement 0.90 (0.80-1.00), chance 0.14, frame"),
        (None, {}, 0.1, "alpha 1; this model cannot answer this question: agreement 0.10"),
    ],
)  # fmt: skip
def test_what_a_sweep_found_leads_with_the_text(word, breaks, agreement, says) -> None:
    row = DoseRow(1.0, (0.4, 0.6), None, None, None, None, None, None, "fine", answers_verdict=word)
    worth = Agreement(agreement, agreement - 0.1, agreement + 0.1, 1 / 7)
    reading = Profile({}, None, 70, frame="cloze", agreement=worth)
    assert says in view_dose.found(Sweep(1.0, [row], breaks, reading=reading), {})
