"""A view's address, in a real browser over the fake engine."""

from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import finished
from tests.browser.test_page import type_into


def query(page: Page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}


def test_the_address_holds_the_view_and_opens_it_elsewhere(page: Page) -> None:
    type_into(page, "#prompt", "a question & more")
    type_into(page, "#alpha-exact", "-1.5")
    expect(page.locator("#dose")).to_contain_text("alpha -1.5")
    drawn = page.get_by_role("button", name="How the vector is made")
    drawn.click()
    temperature = page.locator("#temperature textarea")
    hints = [page.locator(f"#{name} textarea").get_attribute("placeholder") for name in ("top-p", "top-k")]
    assert [temperature.get_attribute("placeholder"), *hints] == ["0.7", "0.9", "0"]
    temperature.fill("0.3")
    parts = ["alpha=-1.5", "more", "temperature=0.3"]
    page.wait_for_function("parts => parts.every((part) => location.search.includes(part))", arg=parts)
    held = query(page)
    assert "top_p" not in held
    assert held["prompt"] == "a question & more"
    assert (held["model"], held["trait"], held["seed"]) == ("demo", "care_over_authority", "0")
    address = page.url
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator("#prompt textarea")).to_have_value("a question & more")
    expect(page.locator("#base-text")).to_contain_text("a question & more")
    assert page.locator("#alpha input[type=range]").input_value() == "-1.5"
    drawn.click()
    expect(temperature).to_have_value("0.3")
    expect(page.locator("#dose")).to_contain_text("alpha -1.5")
    finished(page)


def test_an_address_of_another_model_says_so(window: BrowserContext, fake: str) -> None:
    page = window.new_page()
    page.goto(f"{fake}?alpha=2.5&band=0.2-0.8&seed=7&model=other")
    expect(page.locator("#dose")).to_contain_text("alpha 2.5")
    expect(page.get_by_text("This address is a view of other; here demo answers.")).to_be_visible()
    assert page.locator("#low input[type=range]").input_value() == "2"
    assert page.locator("#high input[type=range]").input_value() == "7"
    page.evaluate("localStorage.clear()")
    page.close()
