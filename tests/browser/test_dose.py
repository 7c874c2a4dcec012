"""The dose panel over the fake engine in a real browser."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import finished
from tests.browser.test_page import set_number, unfold

CELL = """([row, column]) => { const box = document.querySelector('#dose-map .sh-plot');
  const at = box.getBoundingClientRect(), l = box._fullLayout;
  return [at.x + l.xaxis._offset + l.xaxis.c2p(column), at.y + l.yaxis._offset + l.yaxis.c2p(row)]; }"""


def note(page: Page, pattern: str) -> None:
    expect(page.locator("#dose-note")).to_contain_text(re.compile(pattern))


def test_one_press_finds_where_it_breaks_and_a_click_steers_there(page: Page) -> None:
    expect(page.locator("#strip")).to_contain_text("not measured")
    page.locator("#dose-find").click()
    expect(page.locator("#dose-note [role=progressbar]")).to_be_visible()
    note(page, "the text is damaged from alpha 2.45, broken from.*Click the chart")
    figure = page.evaluate("document.querySelector('#dose-chart .sh-plot').data.map(t => [t.x, t.y])")
    assert len(figure) == 6
    assert all(x == sorted(x) and len(x) == 14 == len(y) for x, y in figure)
    for word in ("fine", "damaged", "broken"):
        expect(page.locator(f"#strip .sh-seg-{word}").first).to_be_visible()
    point = page.locator("#dose-chart .trace .point").nth(8).bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_timeout(200)
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    alpha = f"{figure[0][0][8]:g}"
    expect(page.locator("#alpha-exact input")).to_have_value(alpha)
    expect(page.locator("#dose")).to_contain_text(f"alpha {alpha} ·")
    finished(page)
    box = page.locator("#prompt textarea")
    measured = box.input_value()
    box.fill("What was not measured.")
    expect(page.locator("#strip")).to_contain_text("not measured")
    box.fill(measured)
    expect(page.locator("#strip .sh-seg-broken").first).to_be_visible()
    set_number(page, "high", "7")
    expect(page.locator("#strip")).to_contain_text("not measured")
    page.reload()
    finished(page)
    expect(page.locator("#high input[type=number]")).to_have_value("7")
    set_number(page, "high", "5")
    expect(page.locator("#strip .sh-seg-fine").first).to_be_visible()


def test_a_click_on_the_grid_sets_alpha_and_band(page: Page) -> None:
    page.locator("#dose-grid").click()
    note(page, "126 cells.*Click a cell")
    page.locator("#dose-map").scroll_into_view_if_needed()
    x, y = page.evaluate(CELL, [12, 5])
    page.mouse.move(x, y)
    page.wait_for_timeout(200)
    page.mouse.click(x, y)
    expect(page.locator("#alpha-exact input")).to_have_value("2")
    expect(page.locator("#layers")).to_contain_text("layers 2 to 4")
    expect(page.locator("#dose")).to_contain_text("alpha 2 ·")
    finished(page)


def test_stop_ends_the_measuring_and_steering_goes_on(page: Page) -> None:
    page.locator("#prompt textarea").fill("A man walks slowly away.")
    set_number(page, "alpha-exact", "1")
    page.locator("#dose-grid").click()
    note(page, r"\d+ cells measured")
    page.locator("#dose-stop").click()
    note(page, "Stopped: ")
    stopped = page.locator("#dose-note").inner_text()
    assert "126 cells" not in stopped
    page.locator("#alpha input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#dose")).to_contain_text("alpha 1.05 ·")
    finished(page)
    assert page.locator("#dose-note").inner_text() == stopped


def test_a_trait_is_made_of_two_words_chosen_and_answered_with(page: Page) -> None:
    unfold(page, "own-trait")
    for pole, word in (("plus", "formal"), ("minus", "formal")):
        page.locator(f"#{pole} textarea, #{pole} input").fill(word)
    page.locator("#make-trait").click()
    expect(page.locator("#making .sh-error")).to_contain_text("give two that differ")
    page.locator("#minus textarea, #minus input").fill("casual")
    page.locator("#target textarea, #target input").fill("Love=1")
    page.locator("#make-trait").click()
    expect(page.locator("#making .sh-error")).to_contain_text("'Love=1' is no target")
    page.locator("#target textarea, #target input").fill("Care=1")
    page.locator("#make-trait").click()
    expect(page.locator("#making")).to_have_text(
        "demo drafts <i>what</i> either would say: step 3 of at most 24; answers go first ..."
    )
    expect(page.locator("#trait input")).to_have_value("formal over casual")
    expect(page.locator("#making .sh-error")).to_have_count(0)
    page.wait_for_function("location.search.includes('trait=formal-over-casual')")
    drafted = page.locator("#replies textarea")
    expect(drafted).to_have_value("? Should I go?\n+ How formal it is.\n- How casual it is.")
    expect(page.locator("#replies")).to_contain_text("1 of 1 pairs of replies that demo drafted are sound")
    note(page, "formal over casual: .*random directions.*formal over casual: 28 cells measured, 4 ")
    expect(page.locator("#dose-note")).to_contain_text("Find which layers takes each alone as well")
    drafted.fill("+ Good day.\nHey.")
    page.locator("#make-trait").click()
    expect(page.locator("#making .sh-error")).to_contain_text("The replies are no pairs")
    drafted.fill("? <i>May</i> I?\n+ Good day.\n- <b>Hey</b>.")
    page.locator("#make-trait").click()
    expect(page.locator("#replies")).not_to_contain_text("drafted")
    expect(drafted).to_have_value("? <i>May</i> I?\n+ Good day.\n- <b>Hey</b>.")
    page.locator("#minus textarea, #minus input").press_sequentially("!")
    expect(drafted).to_have_value("")
    page.reload()
    expect(page.locator("#trait input")).to_have_value("formal over casual")
