"""What a person takes for granted: words explained, keys, contrast, directions, Back, nothing stale."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import BrowserContext, Page, expect

from components.words import WORDS
from tests.browser.conftest import fake_page, finished, free_port, sized
from tests.browser.test_page import text, type_into

SCROLLS = """(name) => { for (let e = document.querySelector(`#${name} table`); e; e = e.parentElement)
    if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'auto') return true;
  return false; }"""
"""Whether a table is wider than what holds it, which scrolls."""
FOCUSED = "document.activeElement.closest('[id]:not([id^=component]):not([id^=range]):not([id^=html])')?.id"


def test_words_are_explained_where_they_stand(page: Page) -> None:
    sentences = {term: said for terms in WORDS.values() for term, said in terms.items()}
    places = {
        "alpha": "alpha", "dose": "c*", "measures": "perplexity", "runs": "retention", "preset": "preset"
    }  # fmt: skip
    for where, term in places.items():
        page.locator(f"#{where} .sh-help[aria-label='What is {term}?']").first.click()
        box = page.locator(".sh-popover:popover-open")
        expect(box).to_have_text(f"{term}: {sentences[term]}. more")
        page.keyboard.press("Escape")
        expect(box).to_have_count(0)
    shown, runs = (page.locator(place).inner_text() for place in ("body", "#runs"))  # there mixes are named
    for word in ("care_over_authority", "mean_diff", "_ratio"):
        assert shown.count(word) == runs.count(word)
    link = page.locator("#help-alpha a").get_attribute("href")
    assert "alpha" in page.request.get(f"{page.url.split('?')[0]}{link}").text()


def test_a_first_visit_has_three_steps_and_a_second_none(page: Page) -> None:
    for step in ("alpha", "dose-find", "launch"):
        expect(page.locator("#tour > div:visible")).to_have_attribute("data-at", step)
        if step == "dose-find":  # what it asks for is done: it goes on by itself
            page.locator("#dose-find").click()
        else:
            page.locator("#tour [data-tour=next]:visible").click()
    expect(page.locator("#tour")).to_be_hidden()
    page.reload()
    finished(page)
    expect(page.locator("#tour")).to_be_hidden()


def test_keys_and_the_order_of_the_focus(page: Page) -> None:
    page.keyboard.press("]")
    expect(page.locator("#dose")).to_contain_text("alpha 1.25")
    page.keyboard.press("[")
    expect(page.locator("#dose")).to_contain_text("alpha 1 ")
    page.keyboard.press("/")
    expect(page.locator("#prompt textarea")).to_be_focused()
    page.keyboard.insert_text("Speak haltingly [")
    expect(page.locator("#status")).to_contain_text("writing")
    page.locator("#trait input").click()
    expect(page.locator("#trait input")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#trait input")).to_have_attribute("aria-expanded", "false")
    page.wait_for_timeout(500)
    expect(page.locator("#status")).to_contain_text("writing")
    page.locator("#trait input").click()
    expect(page.locator("#trait input")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#trait input")).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_contain_text("Stopped")
    page.locator("#alpha input[type=range]").focus()
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        if at and (not order or order[-1] != at):
            order.append(at)
    wanted = "alpha-exact trait low high vignette prompt stop base-text steered-text"
    assert " ".join(at for at in order if at in wanted.split()) == wanted
    outline = "getComputedStyle(document.querySelector('#steered-text:focus-visible')).outlineStyle"
    page.locator("#base-text").focus()
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"


def test_bad_input_is_one_sentence_and_nothing_stale_stays(page: Page) -> None:
    vignette = page.locator("#vignette input")
    assert vignette.input_value()
    type_into(page, "#prompt", "my own words")
    expect(vignette).to_have_value("")
    finished(page)
    for box, wrong, says, right in (
        ("#alpha-exact", "1000", "64", "1"),
        ("#alpha-exact", "", "alpha is empty", "1"),
        ("#prompt", "word " * 3000, "8000", "again"),
        ("#prompt", "   ", "prompt is empty", "and again"),
    ):
        type_into(page, box, wrong)
        expect(page.locator(".sh-error:visible")).to_have_count(1)
        expect(page.locator("#status .sh-error")).to_contain_text(says)
        for old in ("#steered-pane", "#verdict", "#bars"):
            expect(page.locator(old)).to_have_css("opacity", "0.45")
        type_into(page, box, right)
        finished(page)
        expect(page.locator("#verdict")).to_have_css("opacity", "1")


def test_the_address_holds_what_is_seen_back_undoes_a_change_and_a_copy_opens_elsewhere(page: Page) -> None:
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
    held = {key: values[0] for key, values in parse_qs(urlsplit(page.url).query).items()}
    assert "top_p" not in held
    assert held["prompt"] == "a question & more"
    assert (held["model"], held["trait"], held["seed"]) == ("demo", "care_over_authority", "0")
    page.wait_for_timeout(1600)
    page.locator("#runs [data-action=open]").last.click()
    page.wait_for_function("location.search.includes('open=example-care-0%3A2')")
    page.wait_for_timeout(1600)
    page.locator("#runs [data-action=show]").last.click()
    page.wait_for_function("new URLSearchParams(location.search).has('runs')")
    page.wait_for_timeout(1600)  # until what the press changed is drawn
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").click()
    expect(page.locator("[data-copy]")).to_have_text("Copied: it opens on this machine only")
    address = page.evaluate("navigator.clipboard.readText()")
    assert address == page.url
    page.go_back()
    page.wait_for_function("!new URLSearchParams(location.search).has('runs')")
    expect(page.locator("#round h3")).to_contain_text("Example")
    page.evaluate("localStorage.clear()")
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator("#runs [data-action=show]").last).to_have_attribute("aria-checked", "false")
    expect(page.locator("#round h3")).to_contain_text("Example")
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


def test_a_table_scrolls_inside_itself_on_a_phone(tab: Page, fake: str) -> None:
    for page in sized(tab, fake, 390, 844, "light"):
        page.locator("#runs [data-action=open]").last.click()
        page.get_by_role("tab", name="Completions").click()
        expect(page.locator("#round-completions td").first).to_be_visible()
        # By key: the run's charts, drawn above the button, would move it from under a mouse.
        page.locator("#dose-effect").press("Enter")
        expect(page.locator("#effect .sh-moved").first).to_be_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
        for name in ("runs", "round-completions"):
            assert page.evaluate(SCROLLS, name), name


def test_a_server_that_died_is_told_of_and_the_page_goes_on(window: BrowserContext, tmp_path: Path) -> None:
    port = free_port()
    page = window.new_page()
    with fake_page(tmp_path, "4", port=port) as url:
        page.goto(url)
        finished(page)
        type_into(page, "#prompt", "typed before it died")
        expect(page.locator("#base-text")).to_contain_text("typed before it died")
        finished(page)
    expect(page.locator("#sh-server")).to_contain_text("does not answer")
    with fake_page(tmp_path, "4", port=port):
        expect(page.locator("#sh-server")).to_contain_text("started anew")
        finished(page)
        assert "typed before it died" in text(page, "#base-text")
        page.evaluate("localStorage.clear()")
        page.close()
