"""The whole thing once: the real page, the real engine, the bundled model, a real heal run."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import app_page, finished
from tests.browser.test_page import WATCH_BASE, drag_alpha, nodes, text, type_into

PATIENCE = 240_000


def launch_small(page: Page, name: str) -> None:
    """Two rounds, as small as the form allows to be useful."""
    page.locator("#run-more button, #run-more .label-wrap").first.click()
    for box, value in (("rounds", 2), ("run-completions", 16), ("run-vignettes", 14), ("run-epochs", 1)):
        type_into(page, f"#{box}", str(value))
    type_into(page, "#run-name", name)
    page.locator("#launch").click()


@pytest.mark.timeout(900)
def test_steer_heal_watch_and_find_it_again(window: BrowserContext, tmp_path: Path) -> None:
    with app_page(window, tmp_path) as page:
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
            arg=before + 2,
        )
        finished(page)
        row = page.locator("#runs tr", has_text="browser test")
        expect(row).to_contain_text("finished", timeout=PATIENCE)

        page.reload()
        page.wait_for_selector("#map .point")
        assert nodes(page, "healed") == before + 2
        row.locator("[data-action=open]").click()
        expect(page.locator("#round")).to_contain_text("browser test")
        expect(page.locator("#round")).to_contain_text("retention")
        page.get_by_role("tab", name="What it says").click()
        expect(page.locator("#round-answers td").first).not_to_be_empty()
        page.get_by_role("tab", name="Completions").click()
        expect(page.locator("#round-completions tbody tr").first).to_be_visible()
