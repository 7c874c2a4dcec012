"""Talking to base, to the steered model and to a healed round: over the fake engine."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import sized
from tests.browser.test_page import enter, launch
from tests.browser.test_runs import row


def opened_talk(page: Page) -> None:
    page.locator("#talk button.label-wrap").click()
    expect(page.locator("#talk-text textarea, #talk-text input").first).to_be_visible()


def say(page: Page, text: str) -> None:
    enter(page, "#talk-text", text)


def done(page: Page, messages: int) -> None:
    expect(page.locator("#talk-log .sh-turn")).to_have_count(messages)
    expect(page.locator("#talk-status")).to_contain_text("done:")
    expect(page.locator("#talk-log .sh-turn").last.locator(".sh-word").first).to_have_text("fine")


def saved(page: Page, name: str) -> str:
    with page.expect_download() as download:
        page.locator(f"#talk-{name}").click()
    assert download.value.suggested_filename == f"conversation.{name}"
    return Path(download.value.path()).read_text()


def test_a_conversation_goes_on_is_edited_answered_again_and_saved(page: Page) -> None:
    opened_talk(page)
    say(page, "<i>one</i>")
    done(page, 1)
    log = page.locator("#talk-log")
    assert log.locator("i, b").count() == 0
    expect(log.locator(".sh-said")).to_have_count(2)
    expect(log).to_contain_text("1 messages , <b><i>one</i></b>")
    expect(page.locator("#talk-status")).to_contain_text("in one batch")
    say(page, "two")
    done(page, 2)
    expect(log.locator(".sh-said").nth(3)).to_contain_text(
        "3 messages , <b>two</b> : sample 0 of seed 1 KIND"
    )
    page.locator("#talk-again").click()
    expect(log.locator(".sh-said").nth(3)).to_contain_text("seed 2 KIND")
    done(page, 2)
    document = json.loads(saved(page, "json"))
    assert [one["user"] for one in document["exchanges"]] == ["<i>one</i>", "two"]
    assert set(document["exchanges"][1]["answers"]) == {"base", "steered"}
    assert "> <i>one</i>" in saved(page, "md")
    log.locator("[data-action=edit]").first.click()
    box = page.locator("#talk-text textarea, #talk-text input").first
    expect(box).to_have_value("<i>one</i>")
    expect(box).to_be_focused()
    expect(log.locator(".sh-turn")).to_have_count(2)
    say(page, "another")
    done(page, 1)
    for number in range(4):
        say(page, f"more {number}")
        done(page, number + 2)
    say(page, "too long")
    expect(page.locator("#talk-status .sh-error")).to_contain_text("begin a new conversation")
    expect(box).to_have_value("too long")
    expect(log.locator(".sh-turn")).to_have_count(5)
    page.locator("#talk-new").click()
    expect(log).to_contain_text("Choose who answers")


def test_a_healed_round_is_talked_to_until_its_run_is_deleted(page: Page) -> None:
    launch(page, 2, "to talk to")
    expect(row(page, "to talk to")).to_contain_text("finished")
    row(page, "to talk to").locator("[data-action=open]").first.click()
    expect(page.locator("#round h3")).to_contain_text("round 2")
    page.locator("#round [data-action=talk]").click()
    expect(page.locator("#talk-voices")).to_contain_text("round")
    expect(page.locator("#talk-text")).to_be_visible()
    page.locator("#talk-voices input").click()
    page.get_by_role("option", name="to talk to, round 1").click()
    page.keyboard.press("Escape")
    say(page, "hello")
    done(page, 1)
    titles = page.locator("#talk-log .sh-answer-title")
    expect(titles.nth(0)).to_have_text("Base")
    expect(titles.nth(1)).to_have_text("to talk to, round 2")
    expect(titles.nth(2)).to_have_text("to talk to, round 1")
    page.once("dialog", lambda dialog: dialog.accept())
    row(page, "to talk to").locator("[data-action=delete]").click()
    expect(page.locator("#runs-message [data-action=restore]")).to_be_visible()
    say(page, "still there?")
    expect(page.locator("#talk-status .sh-error")).to_contain_text("There is no run")
    expect(page.locator("#talk-log .sh-turn")).to_have_count(1)


def test_it_is_stopped_and_fits_a_phone(tab: Page, fake: str) -> None:
    for page in sized(tab, fake, 390, 844, "light"):
        opened_talk(page)
        say(page, "haltingly")
        expect(page.locator("#talk-status")).to_contain_text(re.compile(r"writing: ([2-9]|\d\d)"))
        page.locator("#talk-stop").click()
        expect(page.locator("#talk-status")).to_contain_text("Stopped.")
        expect(page.locator("#talk-log .sh-said").first).to_contain_text("1 messages")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
