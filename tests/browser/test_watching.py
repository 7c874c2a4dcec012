"""What an open page asks for while nothing happens, and a hidden one; no answer is lost."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import opened

HIDE = "Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })"
SHOW = "Object.defineProperty(document, 'hidden', { get: () => false, configurable: true })"


DRAWN = "document.querySelector('#map [data-drawn]').dataset.drawn"
HOLD = """(() => {
  const plainly = window.fetch, held = (window.held = { armed: false, meanwhile: null });
  let joined = () => {};
  window.fetch = async (...args) => {
    const url = String(args[0].url ?? args[0]);
    const reply = await plainly(...args);
    if (url.includes("/queue/join")) setTimeout(joined, 200);
    if (!url.includes("/queue/data")) return reply;
    const slow = new TransformStream({ async transform(chunk, out) {
      if (held.armed && new TextDecoder().decode(chunk).includes("close_stream")) {
        held.armed = false;
        const release = new Promise((go) => { joined = go; });
        held.meanwhile();
        await release;
      }
      out.enqueue(chunk);
    } });
    return new Response(reply.body.pipeThrough(slow), { status: reply.status, headers: reply.headers });
  };
})()"""
"""The end of an armed stream reaches the page only when the event of `held.meanwhile` has been joined."""


def marks(page: Page, times: int) -> None:
    """Waits until the page has asked for the mark so many times."""
    for _ in range(times):
        with page.expect_request("**/ui/mark"):
            pass


def test_an_open_page_asks_for_one_small_value_and_redraws_nothing(page: Page, fake: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(fake)))
    for _ in range(40):  # until what ran before has ended and is drawn
        asked.clear()
        marks(page, 2)
        if set(asked) == {"ui/mark"}:
            break
    asked.clear()
    drawn = page.evaluate(DRAWN)
    page.wait_for_timeout(3600)
    assert set(asked) == {"ui/mark"}
    assert len(asked) <= 4
    assert page.evaluate(DRAWN) == drawn
    page.evaluate(HIDE)
    page.wait_for_timeout(200)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []
    with page.expect_request("**/ui/mark"):
        page.evaluate(SHOW)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert asked[:1] == ["ui/mark"]


@pytest.fixture
def held(window: BrowserContext, fake: str) -> Iterator[Page]:
    page = window.new_page()
    page.add_init_script(HOLD)
    yield from opened(page, fake)
    page.close()


def test_an_event_that_joins_while_the_stream_of_another_ends_is_answered(held: Page) -> None:
    held.locator("#runs [data-action=open][data-run=example-care-0]").click()
    expect(held.locator("#round h3")).to_contain_text("Example")
    held.get_by_role("tab", name="Completions").click()
    tick = held.locator("#runs [data-action=show]").last
    expect(tick).to_have_attribute("aria-checked", "true")
    held.evaluate("""() => Object.assign(held, { armed: true,
      meanwhile: () => [...document.querySelectorAll("#runs [data-action=show]")].at(-1).click() })""")
    held.get_by_label("kept", exact=True).check()
    expect(tick).to_have_attribute("aria-checked", "false")
