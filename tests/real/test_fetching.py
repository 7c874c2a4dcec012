"""A page that began on the demo fetches smollm2 when it is chosen, by pip as set up here, and answers."""

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from steer_heal.config import DEMO, SMOLLM2
from tests.browser.conftest import app_page, finished


def test_the_pages_chooser_fetches_it_and_it_answers(
    smollm2_folder: Path, window: BrowserContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_HEAL_HOME", str(tmp_path / "home"))
    with app_page(window, tmp_path, "--model", DEMO) as page:
        finished(page)
        header = page.locator("#header")
        expect(header).to_contain_text(f"{SMOLLM2} (SmolLM2-135M-Instruct")
        of_demo = page.locator("#base-text").inner_text()
        page.locator("#model-more button, #model-more .label-wrap").first.click()
        box = page.locator("#model input")
        box.fill(SMOLLM2)
        box.press("Enter")
        expect(header).to_contain_text("downloading", timeout=60_000)
        expect(header).to_contain_text("LlamaForCausalLM", timeout=180_000)
        expect(page.locator("#models")).not_to_contain_text("models get")
        page.wait_for_function(
            "old => ![old, ''].includes(document.querySelector('#base-text').innerText)", arg=of_demo
        )
        finished(page)
        base, steered = (page.locator(f"#{stage}-text").inner_text() for stage in ("base", "steered"))
        assert min(len(base), len(steered)) > 20
        assert base != steered
