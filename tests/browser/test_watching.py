"""What an open page asks for while nothing happens, and what a hidden one asks for."""

from playwright.sync_api import Page

HIDE = "Object.defineProperty(document, 'hidden', { get: () => true, configurable: true })"
SHOW = "Object.defineProperty(document, 'hidden', { get: () => false, configurable: true })"


def standing_still(page: Page, url: str) -> None:
    """Waits until no fake run moves any more."""
    before = ""
    for _ in range(60):
        now = page.request.get(f"{url}ui/mark").text()
        if now == before:
            return
        before = now
        page.wait_for_timeout(700)


def test_an_open_page_asks_for_one_small_value_and_redraws_nothing(page: Page, fake: str) -> None:
    standing_still(page, fake)
    page.wait_for_timeout(1700)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(fake)))
    drawn = page.evaluate("document.querySelector('#map').dataset.drawn")
    page.wait_for_timeout(3600)
    assert set(asked) == {"ui/mark"}
    assert 2 <= len(asked) <= 4
    assert page.evaluate("document.querySelector('#map').dataset.drawn") == drawn
    page.evaluate(HIDE)
    page.wait_for_timeout(200)
    asked.clear()
    page.wait_for_timeout(2500)
    assert asked == []
    page.evaluate(SHOW)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(500)
    assert asked[:1] == ["ui/mark"]
