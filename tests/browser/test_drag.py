"""A drag of the dose on the bundled model: what is in view at every frame that the browser draws."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import BrowserContext

from components.answering import WORDS
from tests.browser.conftest import app_page, finished
from tests.browser.test_page import slider_x, text

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


def test_a_drag_is_read_while_it_moves(window: BrowserContext, tmp_path: Path) -> None:
    moves = 80
    with app_page(window, tmp_path, "--model", "demo") as page:
        page.wait_for_selector("#steered-text .sh-t")
        finished(page)
        base, x, y = text(page, "#base-text"), *slider_x(page)
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url) if "/queue/join" in r.url else None)
        page.evaluate(WATCH)
        page.mouse.move(x(1.0), y)
        page.mouse.down()
        for number in range(1, moves + 1):
            page.mouse.move(x(1.0 + 2.5 * number / moves), y)
            page.wait_for_timeout(50)
        page.mouse.up()
        seconds = page.evaluate("(performance.now() - seen.begun) / 1000")
        seen = page.evaluate("seen.over = true, seen")
        finished(page)
        assert set(seen["base"]) == {base}
        assert min(map(len, seen["steered"])) >= WORDS
        assert len(set(seen["texts"])) > 4
        assert len(asked) <= 4 * seconds + 8
        assert f"alpha {float(page.locator('#alpha-exact input').input_value()):g} " in text(page, "#dose")
