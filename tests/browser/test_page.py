"""The page over the fake engine in a real browser."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.conftest import finished, opened

HOSTILE = (
    '<img src=x onerror="window.hacked=1"> ${window.hacked=2} {{window.hacked}} <script>hacked=3</script>'
)
WATCH_BASE = """() => { window.baseChanges = 0;
  new MutationObserver((m) => { window.baseChanges += m.length; }).observe(
    document.querySelector('#base-text'), { childList: true, characterData: true, subtree: true }); }"""
ITS_NODES = """run => document.querySelector('#map .sh-plot').data.find((t) => t.name === 'healed')
  .customdata.filter(([one]) => one === run).length === 2"""
RANGES = """() => { const l = document.querySelector('#map .sh-plot').layout;
  return [...l.xaxis.range, ...l.yaxis.range]; }"""


def text(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def slider_x(page: Page) -> tuple[Callable[[float], float], float]:
    """Where alpha's knob lies for a value, and how high."""
    box = page.locator("#alpha input[type=range]").bounding_box()

    def x(alpha: float) -> float:
        return box["x"] + 8 + (box["width"] - 16) * (alpha + 4) / 8

    return x, box["y"] + box["height"] / 2


def drag_alpha(page: Page, to: float) -> None:
    """Drag the slider's knob from where it is to `to`, in several moves as a hand does."""
    now = float(page.locator("#alpha input[type=range]").input_value())
    x, middle = slider_x(page)
    page.mouse.move(x(now), middle)
    page.mouse.down()
    page.mouse.move(x(to), middle, steps=8)
    page.mouse.up()


def type_into(page: Page, selector: str, value: str) -> None:
    page.locator(f"{selector} textarea, {selector} input").first.fill(value)


def enter(page: Page, selector: str, value: str) -> None:
    type_into(page, selector, value)
    page.locator(f"{selector} textarea, {selector} input").first.press("Enter")


def unfold(page: Page, name: str) -> None:
    page.locator(f"#{name} button, #{name} .label-wrap").first.click()


def set_number(page: Page, name: str, value: str) -> None:
    box = page.locator(f"#{name} input[type=number]")
    box.fill(value)
    box.press("Tab")


def status_becomes(page: Page, pattern: str) -> None:
    expect(page.locator("#status .sh-status")).to_have_text(re.compile(pattern))


def nodes(page: Page, stage: str) -> int:
    return page.evaluate(
        "s => ((document.querySelector('#map .sh-plot').data || []).find(t => t.name === s)?.x || []).length",
        stage,
    )


def launch(page: Page, rounds: int, name: str) -> None:
    type_into(page, "#rounds", str(rounds))
    type_into(page, "#run-name", name)
    page.locator("#launch").click()


def quiet(page: Page) -> None:
    """No run goes on, so that nothing moves under the pointer."""
    expect(page.locator("#runs [role=progressbar]")).to_have_count(0)


def test_first_visit_has_an_answer_and_the_example_and_a_vignette_is_chosen(page: Page) -> None:
    title = page.locator("#steered-text .sh-t").nth(3).get_attribute("title") or ""
    assert all(word in title for word in ("KL", "nats", "p steered", "base preferred"))
    assert len(text(page, "#base-text")) > 20
    assert page.locator("#steered-text .sh-t").count() > 10
    assert "fine" in text(page, "#verdict")
    assert nodes(page, "healed") >= 2
    expect(page.locator("#runs .sh-tag").first).to_have_text("example")
    assert "not Gemma" in text(page, "#header")
    page.locator("#foundation input").click()
    page.get_by_role("option", name="Fairness").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("Fairness"))
    expect(page.locator("#base-text")).to_contain_text("Fairness")


def test_dragging_alpha_rewrites_the_steered_answer_only(page: Page) -> None:
    base, steered, bars = (text(page, f"#{name}") for name in ("base-text", "steered-text", "bars"))
    page.evaluate(WATCH_BASE)
    drag_alpha(page, 3.0)
    expect(page.locator("#steered-text")).to_contain_text("need need")
    alpha = page.locator("#alpha-exact input").input_value()
    assert 2.5 < float(alpha) <= 3.5
    expect(page.locator("#dose")).to_contain_text(f"alpha {float(alpha):g} ")  # the last of its answers
    finished(page)
    assert "broken" in text(page, "#verdict .sh-word")
    assert text(page, "#steered-text") != steered
    expect(page.locator("#bars")).not_to_have_text(bars)
    assert text(page, "#base-text") == base
    assert page.evaluate("window.baseChanges") == 0
    type_into(page, "#alpha-exact", "6")  # beyond the slider
    expect(page.locator("#dose")).to_contain_text("alpha 6")
    assert page.locator("#alpha input[type=range]").input_value() == "4"


def test_stop_stops_also_what_is_still_on_its_way(page: Page) -> None:
    whole = len(text(page, "#steered-text"))
    type_into(page, "#prompt", "Speak haltingly.")
    status_becomes(page, "writing")
    cursors = page.locator("#base-text .sh-cursor, #steered-text .sh-cursor")
    expect(cursors.first).to_be_visible()
    expect(cursors.last).to_be_visible()
    page.locator("#stop").click()
    status_becomes(page, "^Stopped")
    short = text(page, "#steered-text")
    assert len(short) < whole
    page.wait_for_timeout(600)
    assert text(page, "#steered-text") == short
    assert not any(cursor.is_visible() for cursor in cursors.all())

    late: list[Route] = []
    page.route("**/queue/join*", lambda route: late.append(route))
    type_into(page, "#prompt", "Speak haltingly again.")
    page.wait_for_timeout(800)
    page.locator("#stop").click()
    page.wait_for_timeout(300)
    assert late, "nothing was on its way"
    page.unroute("**/queue/join*")  # what was held goes on now
    status_becomes(page, "^Stopped")


def test_what_is_typed_and_answered_is_text_in_its_own_direction(page: Page) -> None:
    prompt = page.locator("#prompt textarea")
    prompt.fill("שלום, מה שלומך היום?")
    assert prompt.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert prompt.get_attribute("dir") == "auto"
    type_into(page, "#prompt", HOSTILE)
    expect(page.locator("#base-text")).to_contain_text("<img src=x onerror=")
    expect(page.locator("#steered-text")).to_contain_text("${window.hacked=2}")
    finished(page)
    launch(page, 1, HOSTILE[:80])
    expect(page.locator("#runs")).to_contain_text("<img src=x")
    assert page.locator("#base-text img, #steered-text img, #runs img, #map img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_run_fills_the_map_by_itself_keeps_its_zoom_and_survives_a_reload(page: Page) -> None:
    plot = page.locator("#map .nsewdrag").first.bounding_box()
    page.mouse.move(plot["x"] + 0.3 * plot["width"], plot["y"] + 0.2 * plot["height"])
    page.mouse.down()
    page.mouse.move(plot["x"] + 0.8 * plot["width"], plot["y"] + 0.7 * plot["height"], steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    zoomed = page.evaluate(RANGES)
    launch(page, 2, "two rounds")
    row = page.locator("#runs tr", has_text="two rounds").first
    expect(row.locator("[role=progressbar]")).to_be_visible()
    drag_alpha(page, 2.0)  # steering stays usable
    finished(page)
    run_id = row.locator("[data-action=show]").get_attribute("data-run")
    page.wait_for_function(ITS_NODES, arg=run_id)
    assert page.evaluate(RANGES) == pytest.approx(zoomed)
    expect(row).to_contain_text("finished")
    row.locator("[data-action=open]").click()
    expect(page.locator("#round")).to_contain_text("two rounds")
    expect(page.locator("#round-bars")).to_contain_text("SocialNorms")
    page.reload()
    page.wait_for_selector("#map .point")
    expect(page.locator("#round")).to_contain_text("two rounds")
    page.wait_for_function(ITS_NODES, arg=run_id)


def test_a_running_run_can_be_cancelled_and_resumed(page: Page) -> None:
    launch(page, 5, "to be cancelled")
    row = page.locator("#runs tr", has_text="to be cancelled").first
    row.locator("[data-action=cancel]").click()
    expect(row).to_contain_text("cancelled")
    row.locator("[data-action=resume]").click()
    expect(row.locator("[role=progressbar]")).to_be_visible()
    row.locator("[data-action=pause]").click()
    expect(row).to_contain_text("paused")
    row.locator("[data-action=clone]").click()
    expect(page.locator("#run-name input, #run-name textarea")).to_have_value("to be cancelled again")
    expect(page.locator("#rounds input")).to_have_value("5")
    expect(page.locator("#heal-message")).to_contain_text("also in what is not on this form")
    row.locator("[data-action=cancel]").click()
    expect(row).to_contain_text("cancelled")
    page.locator("#launch").click()
    copied = page.locator("#runs tr", has_text="to be cancelled again").first
    copied.locator("[data-action=cancel]").click()
    expect(copied).to_contain_text("cancelled")


def test_clicking_a_node_opens_its_round_and_an_empty_map_says_what_to_do(page: Page) -> None:
    point = page.locator("#map .trace .point").last.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    expect(page.locator("#map .hovertext")).to_be_visible()
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    expect(page.locator("#round h3")).to_contain_text("round")
    page.get_by_role("tab", name="What it says").click()
    expect(page.locator("#round-answers")).to_contain_text("<b>I would help</b>")
    page.get_by_role("tab", name="Completions").click()
    expect(page.locator("#round-completions")).to_contain_text("repetition 0.90 above 0.30")
    page.get_by_label("kept", exact=True).check()
    expect(page.locator("#round-completions")).not_to_contain_text("need need need")
    page.get_by_role("tab", name="Training").click()
    expect(page.locator("#round-losses .scatterlayer .trace").first).to_be_visible()
    assert page.evaluate("window.hacked") is None
    quiet(page)
    ticked = page.locator("#runs [aria-checked=true]")
    while count := ticked.count():
        ticked.first.click()
        expect(ticked).to_have_count(count - 1)
    expect(page.locator("#map .sh-plot-empty")).to_contain_text("tick one")


def test_two_sessions_do_not_see_each_other(page: Page, window: BrowserContext, fake: str) -> None:
    other = window.new_page()
    for _ in opened(other, fake):
        type_into(other, "#prompt", "what the other one asked")
        expect(other.locator("#base-text")).to_contain_text("what the other one asked")
        finished(other)
        assert "other one" not in text(page, "#base-text")
    other.close()


def test_what_is_looked_at_and_left_alone_is_as_in_the_preset(page: Page) -> None:
    unfold(page, "run-more")
    expect(page.locator("#run-completions input")).to_be_visible()
    page.locator("#launch").click()
    expect(page.locator("#heal-card .sh-card")).to_contain_text("of 3")
