"""The page on smollm2: fetched when it is chosen, by pip as set up here; it answers, and a drag is read."""

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from components.answering import WORDS
from steer_heal.config import DEMO, SMOLLM2
from tests.browser.conftest import app_page, finished
from tests.browser.test_look import SHIFTS
from tests.browser.test_page import enter, slider_x, text, unfold

MOVES = 80
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


def test_the_pages_chooser_fetches_it_and_it_answers(
    smollm2_folder: Path, window: BrowserContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_HEAL_HOME", str(tmp_path / "home"))
    with app_page(window, tmp_path, "--model", DEMO, view="?length=24") as page:
        finished(page)
        header = page.locator("#header")
        expect(header).to_contain_text(f"{SMOLLM2} (SmolLM2-135M-Instruct")
        of_demo = text(page, "#base-text")
        unfold(page, "model-more")
        enter(page, "#model", SMOLLM2)
        expect(header).to_contain_text("downloading", timeout=60_000)
        expect(header).to_contain_text("LlamaForCausalLM", timeout=180_000)
        expect(page.locator("#models")).not_to_contain_text("models get")
        page.wait_for_function(
            "old => ![old, ''].includes(document.querySelector('#base-text').innerText)", arg=of_demo
        )
        finished(page)
        base, steered = text(page, "#base-text"), text(page, "#steered-text")
        assert min(len(base), len(steered)) > 20
        assert base != steered
        a_drag_is_read_while_it_moves(page)


def a_drag_is_read_while_it_moves(page: Page) -> None:
    """In every frame that the browser draws base stays, the steered text can be read, and nothing shifts; at
    most four answers a second are asked for, and the last one is of where the drag ended."""
    base, x, y = text(page, "#base-text"), *slider_x(page)
    asked: list[str] = []
    page.on("request", lambda r: asked.append(r.url) if "/queue/join" in r.url else None)
    page.evaluate(WATCH)
    page.evaluate(SHIFTS)
    page.mouse.move(x(1.0), y)
    page.mouse.down()
    for lap in range(10):  # there and back: on a busy machine one way is too short
        start, way = (1.0, 2.5) if lap % 2 == 0 else (3.5, -2.5)
        for number in range(1, MOVES + 1):
            page.mouse.move(x(start + way * number / MOVES), y)
            page.wait_for_timeout(50)
        if page.evaluate("new Set(seen.texts).size > 4"):
            break
    page.mouse.up()
    seconds = page.evaluate("(performance.now() - seen.begun) / 1000")
    seen = page.evaluate("seen.over = true, seen")
    assert page.evaluate("window.shift") < 0.05
    finished(page)
    assert set(seen["base"]) == {base}
    assert min(map(len, seen["steered"])) >= WORDS
    assert len(set(seen["texts"])) > 4
    assert len(asked) <= 4 * seconds + 8
    assert f"alpha {float(page.locator('#alpha-exact input').input_value()):g} " in text(page, "#dose")
