"""The real page and engine on the bundled model: steering, then a whole heal run."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import app, finished, visit
from tests.browser.test_page import WATCH_BASE, drag_alpha, nodes, text, type_into

PATIENCE = 240_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with app(tmp_path_factory.mktemp("demo"), "--model", "demo") as address:
        yield address


def launch_small(page: Page, name: str) -> None:
    """A round, as small as the form allows to be useful."""
    for more in ("#run-more", "#run-every"):
        page.locator(f"{more} button, {more} .label-wrap").first.click()
    type_into(page, "#run-others", "data.n_plain=8\nevaluate.n_answers=4\nevaluate.controls=0")
    for box, value in (("rounds", 1), ("run-completions", 16), ("run-vignettes", 7), ("run-epochs", 1)):
        type_into(page, f"#{box}", str(value))
    type_into(page, "#run-name", name)
    page.locator("#launch").click()


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
