"""What is in view at once, what stays there, and what a click brings there: over the fake engine."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import finished, sized
from tests.browser.test_page import drag_alpha, set_number, text

TOGETHER = (
    *("header", "trait", "alpha", "strip", "verdict", "low", "high", "layers", "prompt"),
    *("base-text", "steered-text", "launch", "map"),
)
"""By their ids: what a person steers with and looks at."""
BOX = """id => { const r = document.getElementById(id).getBoundingClientRect();
  return [r.top, r.bottom, r.height]; }"""
IN_UPPER_HALF = """id => { const { top } = document.getElementById(id).getBoundingClientRect();
  return 0 <= top && top < innerHeight / 2; }"""
ALPHA_ON_TOP = """() => { const r = document.querySelector('#alpha [type=range]').getBoundingClientRect();
  return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2).closest('#alpha') !== null; }"""
SHIFTS = """() => { window.shift = 0; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shift += entry.value;
}).observe({ type: 'layout-shift', buffered: false }); }"""
VERDICTS = """() => { window.verdicts = [];
  const look = () => { window.verdicts.push(document.querySelector('#verdict .sh-word')?.innerText ?? 'none');
    if (!window.over) requestAnimationFrame(look); };
  look(); }"""


def box(page: Page, name: str) -> tuple[float, float, float]:
    """Top, bottom and height in the window, px."""
    return tuple(page.evaluate(BOX, name))


@pytest.fixture(params=[(1400, 900, "light"), (1920, 1080, "dark")], ids=["1400", "1920"])
def wide(request: pytest.FixtureRequest, tab: Page, fake: str) -> Iterator[Page]:
    yield from sized(tab, fake, *request.param)


@pytest.fixture(params=[(390, 844, "light"), (700, 450, "dark")], ids=["phone", "zoomed to 200%"])
def narrow(request: pytest.FixtureRequest, tab: Page, fake: str) -> Iterator[Page]:
    yield from sized(tab, fake, *request.param)


def test_one_look_has_it_all_and_axe_finds_no_fault(wide: Page) -> None:
    height = wide.evaluate("innerHeight")
    for name in TOGETHER:
        top, bottom, tall = box(wide, name)
        assert tall > 0, name
        assert 0 <= top < bottom <= height, name
    assert wide.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    wide.locator("#runs [data-action=open]").last.click()
    expect(wide.locator("#round-bars .sh-bg-healed").first).to_be_visible()
    wide.locator("#dose-effect").click()
    expect(wide.locator("#effect .sh-moved").first).to_be_visible()
    found = Axe().run(wide)
    assert not found.response["violations"], found.generate_report()


def test_alpha_stays_in_view_above_the_steered_text(narrow: Page) -> None:
    narrow.locator("#steered-text").evaluate("e => e.scrollIntoView({ block: 'end' })")
    _, alpha, _ = box(narrow, "alpha")
    strip = box(narrow, "strip")
    top, bottom, _ = box(narrow, "steered-text")
    assert 0 < alpha <= strip[1] <= top
    assert bottom <= narrow.evaluate("innerHeight + 1")
    assert narrow.evaluate(ALPHA_ON_TOP)
    order = [box(narrow, name)[0] for name in ("alpha", "dose-find", "launch", "map", "runs")]
    narrow.evaluate("scrollTo(0, 0)")
    assert order[1:] == sorted(order[1:])
    base, steered = box(narrow, "base-text"), box(narrow, "steered-text")
    assert narrow.evaluate("innerWidth") > 600 or steered[0] >= base[1]
    assert narrow.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_what_a_click_opens_comes_into_view_and_takes_the_focus(page: Page) -> None:
    for press, opens in (("#runs [data-action=open]", "round"), ("#dose-find", "dose-tabs")):
        page.locator(press).last.click()
        expect(page.locator(f"#{opens}")).to_be_focused()
        page.wait_for_function(IN_UPPER_HALF, arg=opens)
    page.locator("#runs [data-action=clone]").last.click()
    expect(page.locator("#run-name input, #run-name textarea")).to_be_focused()


def test_a_drag_moves_nothing_and_keeps_its_verdict(page: Page) -> None:
    page.locator("#strip").scroll_into_view_if_needed()
    heights = {name: box(page, name)[2] for name in ("base-text", "steered-text", "alpha")}
    page.evaluate(SHIFTS)
    page.evaluate(VERDICTS)
    for to in (3.5, -1.0, 2.0):
        drag_alpha(page, to)
        page.wait_for_timeout(400)
    finished(page)
    shift, verdicts = page.evaluate("(window.over = true, [window.shift, window.verdicts])")
    assert shift < 0.05
    assert {"fine", "broken"} <= set(verdicts) <= {"fine", "damaged", "broken"}
    assert {name: box(page, name)[2] for name in heights} == heights


def test_a_single_layer_can_be_named_and_the_address_carries_it(page: Page) -> None:
    for name in ("low", "high"):
        set_number(page, name, "7")
    expect(page.locator("#layers")).to_contain_text("layer 7 of 0 to 9: 70% to 80%")
    page.wait_for_function("location.search.includes('band=0.7-0.8')")
    finished(page)
    page.reload()
    expect(page.locator("#layers")).to_contain_text("layer 7 of 0 to 9")
    assert "sh-error" not in text(page, "#status")
