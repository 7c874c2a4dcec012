"""A sweep on the page: said beforehand, started, compared, shown on the map as one; fake engine."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import fake_page
from tests.browser.test_page import nodes, type_into


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own: a sweep's runs would take the places on the map of others that tests wait for."""
    with fake_page(tmp_path_factory.mktemp("fake"), "2") as url:
        yield url


def test_a_sweep_from_its_form_to_its_chart(page: Page) -> None:
    page.get_by_role("button", name="Several runs: a sweep").click()
    type_into(page, "#rounds", "1")
    type_into(page, "#sweep-axes", "train.divergance=nll")
    said = page.locator("#sweep-said")
    expect(said).to_contain_text("perhaps train.divergence")
    type_into(page, "#sweep-axes", "train.divergence=nll,kl_rev\nseed=3,4")
    expect(said).to_contain_text("4 runs, 1 at a time. Time: about 6 min")
    page.locator("#sweep-start").click()
    expect(said).to_contain_text("4 runs are queued")
    sweep = page.locator("#sweeps tbody tr", has_text="train.divergence").first
    expect(sweep).to_contain_text("4 finished")
    expect(page.locator("#sweep h3")).to_contain_text("train.divergence")
    expect(page.locator("#sweep")).to_contain_text("no different")
    for name in ("front", "settings", "runs"):
        expect(page.locator("#sweep-chart .legendtext", has_text=re.compile(f"^{name}$"))).to_be_visible()
    shown, press = sweep.locator("[role=checkbox]"), sweep.locator("[data-action=show-sweep]")
    expect(shown).to_have_attribute("aria-checked", "true")  # the newest runs are
    points = "document.querySelector('#map .sh-plot').data.find(t => t.name === 'healed').x.length"
    with_it = nodes(page, "healed")
    press.click()
    expect(shown).to_have_attribute("aria-checked", "false")
    page.wait_for_function(f"{points} < {with_it}")
    press.click()
    expect(shown).to_have_attribute("aria-checked", "true")
    sweep.locator("[data-action=open-sweep]").click()  # while the last press is being drawn
    expect(page.locator("#sweep h3")).to_have_count(0)
