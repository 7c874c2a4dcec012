"""Where it is steered, several vectors at once, and what a token carries: over the fake engine."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import finished
from tests.browser.test_page import enter, launch, quiet, text, unfold

SHADE = "e => getComputedStyle(e).backgroundColor"
LINE = "e => getComputedStyle(e).textDecorationLine"
COUNT = """() => {
  let state = "done";
  window.answers = 0;
  new MutationObserver(() => {
    const [now] = document.querySelector("#status .sh-status")?.innerText.match(/^(done|writing)/) ?? [state];
    if (now !== state && now === "writing") window.answers += 1;
    state = now;
  }).observe(document.querySelector("#status"), { subtree: true, childList: true, characterData: true });
}"""
"""Counts the answers that begin to be written."""


def gated(page: Page, where: str) -> None:
    enter(page, "#where", where)
    page.keyboard.press("Tab")


def test_tokens_are_shaded_by_what_they_carry_and_marked_where_they_are_steered(page: Page) -> None:
    token = page.locator("#steered-text .sh-t").nth(1)
    base = page.locator("#base-text .sh-t").first
    for part in ("KL", "carries +2.0 of the trait"):
        assert part in (token.get_attribute("title") or "")
    assert "carries -3.0" in (base.get_attribute("title") or "")
    by_kl = token.evaluate(SHADE)
    assert base.evaluate(SHADE) == "rgba(0, 0, 0, 0)"
    page.locator("#shading").get_by_text("the trait").click()
    expect(page.locator(".sh-of-trait").first).to_be_visible()
    expect(page.locator(".sh-of-kl").first).to_be_hidden()
    assert token.evaluate(SHADE) != by_kl
    assert "114, 178" in base.evaluate(SHADE)
    unfold(page, "drawing")
    gated(page, "first 3")
    expect(page.locator("#dose")).to_contain_text("the first 3 tokens of the answer")
    finished(page)
    marked = page.locator("#steered-text .sh-at")
    expect(marked).to_have_count(3)
    assert marked.first.evaluate(LINE) == "underline"
    assert "steered with 100% of the dose" in (marked.first.get_attribute("title") or "")
    page.wait_for_function("new URLSearchParams(location.search).get('where') === 'first 3'")
    page.reload()
    finished(page)
    expect(marked).to_have_count(3)
    unfold(page, "drawing")
    gated(page, "prompt")
    expect(marked).to_have_count(0)
    assert page.locator("#prompt textarea").evaluate(LINE) == "underline"
    gated(page, "nowhere")
    expect(page.locator("#status .sh-error")).to_contain_text("says no place: write both, prompt")


def test_a_mix_is_typed_dragged_shared_and_refused(page: Page) -> None:
    unfold(page, "mixing")
    enter(page, "#mix", "0.8 care_over_authority - 0.4 candour_over_tact @answer")
    expect(page.locator("#dose")).to_contain_text("of 0.8 care_over_authority - 0.4 candour_over_tact")
    finished(page)
    expect(page.locator("#dose")).to_contain_text("measured 1.00 nats")
    expect(page.locator("#mixed-dose-2 input[type=number]")).to_have_value("-0.4")
    dose = page.locator("#mixed-dose-1 input[type=range]")
    dose.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#mix textarea, #mix input").first).to_have_value(
        re.compile(r"^0\.85 care.* @answer$")
    )
    expect(page.locator("#dose")).to_contain_text("of 0.85 care_over_authority")
    page.wait_for_function("new URLSearchParams(location.search).get('mix')?.startsWith('0.85 care')")
    page.reload()
    finished(page)
    expect(page.locator("#dose")).to_contain_text("of 0.85 care_over_authority")
    launch(page, 1, "of a mix")
    expect(page.locator("#runs tr", has_text="of a mix")).to_have_count(1)
    unfold(page, "mixing")
    expect(page.locator("#mixed-dose-1 input[type=number]")).to_have_value("0.85")
    page.wait_for_timeout(500)  # what is unfolded is drawn once more, with its value
    enter(page, "#mix", "0.8 care_over_autority")
    expect(page.locator("#status .sh-error")).to_contain_text("nearest: care_over_authority")
    enter(page, "#mix", "")
    finished(page)
    assert "care_over" not in text(page, "#dose")
    quiet(page)


def test_a_mix_is_answered_once_and_measured_on_what_it_adds(page: Page) -> None:
    page.evaluate(COUNT)
    unfold(page, "mixing")
    mix = "0.8 candour_over_tact - 0.4 care_over_authority"
    enter(page, "#mix", mix)
    expect(page.locator("#trait input")).to_have_value("Candour over tact")
    expect(page.locator("#dose")).to_contain_text(f"of {mix}")
    finished(page)
    expect(page.locator("#dose")).to_contain_text("measured 1.00 nats")
    assert page.evaluate("answers") == 1
    page.locator("#mixed-dose-1 input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#dose")).to_contain_text(f"of {mix.replace('0.8', '0.85')}")
    finished(page)
    page.locator("#mixed-3 input").click()
    page.get_by_role("option", name="Care over authority").last.click()
    expect(page.locator("#dose")).to_contain_text("- 0.4 care_over_authority + 0.5 care_over_authority")
    finished(page)
    assert page.evaluate("answers") == 3
