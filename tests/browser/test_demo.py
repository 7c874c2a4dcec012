"""The real page and engine on the bundled model: a drag of the dose, then a whole heal run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from components.answering import WORDS
from tests.browser.conftest import app, finished, visit
from tests.browser.test_look import SHIFTS
from tests.browser.test_page import WATCH_BASE, drag_alpha, nodes, slider_x, text, type_into

PATIENCE = 240_000
WATCH = """() => {
  const seen = window.seen = { steered: [], base: [], texts: [], begun: performance.now(), asked: [] };
  const look = () => {
    const steered = document.querySelector('#steered-text');
    seen.steered.push(steered.innerText);
    seen.base.push(document.querySelector('#base-text').innerText);
    const said = steered.innerText;
    if (!steered.querySelector('.sh-stale') && seen.texts.at(-1) !== said) seen.texts.push(said);
    if (!seen.over) requestAnimationFrame(look);
  };
  look();
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with app(tmp_path_factory.mktemp("demo"), "--model", "demo") as address:
        yield address


def launch_small(page: Page, name: str) -> None:
    """A round, as small as the form allows to be useful."""
    for more in ("#run-more", "#run-every"):
        page.locator(f"{more} button, {more} .label-wrap").first.click()
    type_into(page, "#run-others", "data.n_plain=8")
    for box, value in (("rounds", 1), ("run-completions", 16), ("run-vignettes", 14), ("run-epochs", 1)):
        type_into(page, f"#{box}", str(value))
    type_into(page, "#run-name", name)
    page.locator("#launch").click()


def test_a_drag_is_read_while_it_moves(window: BrowserContext, url: str) -> None:
    """What is in view at every frame that the browser draws."""
    moves = 80
    with visit(window, url) as page:
        page.wait_for_selector("#steered-text .sh-t")
        finished(page)
        base, x, y = text(page, "#base-text"), *slider_x(page)
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url) if "/queue/join" in r.url else None)
        page.evaluate(WATCH)
        page.evaluate(SHIFTS)
        page.mouse.move(x(1.0), y)
        page.mouse.down()
        for lap in range(10):  # there and back: on a busy machine one way is too short
            start, way = (1.0, 2.5) if lap % 2 == 0 else (3.5, -2.5)
            for number in range(1, moves + 1):
                page.mouse.move(x(start + way * number / moves), y)
                page.wait_for_timeout(50)
            if page.evaluate("new Set(seen.texts).size > 4"):
                break
        page.mouse.up()
        seconds = page.evaluate("(performance.now() - seen.begun) / 1000")
        seen = page.evaluate("seen.over = true, seen")
        assert page.evaluate("window.shift") < 0.05
        finished(page)
        assert set(seen["base"]) == {base}
        assert min(map(len, seen["steered"])) >= WORDS
        assert len(set(seen["texts"])) > 4
        assert len(asked) <= 4 * seconds + 8
        assert f"alpha {float(page.locator('#alpha-exact input').input_value()):g} " in text(page, "#dose")


@pytest.mark.timeout(900)
def test_steer_heal_watch_and_find_it_again(window: BrowserContext, url: str) -> None:
    with visit(window, url) as page:
        page.set_default_timeout(PATIENCE)
        page.wait_for_selector("#steered-text .sh-t")
        finished(page)
        assert "not Gemma" in text(page, "#header")
        expect(page.locator("#bars")).to_contain_text("SocialNorms")

        base, steered = text(page, "#base-text"), text(page, "#steered-text")
        page.evaluate(WATCH_BASE)
        drag_alpha(page, 3.5)
        page.wait_for_function(
            "old => document.querySelector('#steered-text').innerText !== old", arg=steered
        )
        finished(page)
        assert text(page, "#base-text") == base
        assert page.evaluate("window.baseChanges") == 0
        expect(page.locator("#verdict .sh-word")).not_to_have_text("fine")

        before = nodes(page, "healed")
        launch_small(page, "browser test")
        drag_alpha(page, 1.0)
        page.wait_for_function(
            "n => (document.querySelector('#map .sh-plot').data || [])"
            ".find(t => t.name === 'healed')?.x.length === n",
            arg=before + 1,
        )
        finished(page)
        row = page.locator("#runs tr", has_text="browser test")
        expect(row).to_contain_text("finished", timeout=PATIENCE)

        page.reload()
        page.wait_for_selector("#map .point")
        assert nodes(page, "healed") == before + 1
        row.locator("[data-action=open]").click()
        expect(page.locator("#round")).to_contain_text("browser test")
        expect(page.locator("#round")).to_contain_text("retention")
        page.get_by_role("tab", name="What it says").click()
        expect(page.locator("#round-answers td").first).not_to_be_empty()
        page.get_by_role("tab", name="Completions").click()
        expect(page.locator("#round-completions tbody tr").first).to_be_visible()
