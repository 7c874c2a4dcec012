"""Choosing another model on the page: the real page and engine over small saved models."""

import json
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, expect

from tests import tiny
from tests.browser.conftest import app_page, finished

SAYS = "answer => document.querySelector('#steered-text').innerText === answer"


def saved(folder: Path, arch: tiny.Arch) -> str:
    return tiny.save(tiny.language_model(arch, n_layers=5), folder)


def broken(folder: Path, file: str, **values: object) -> str:
    """A saved model with other values in one of its JSON files."""
    name = saved(folder, "llama")
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))
    return name


def choose(page: Page, name: str) -> None:
    box = page.locator("#model input")
    box.fill(name)
    box.press("Enter")


def answered(page: Page, old: str) -> str:
    """The steered answer in view, once it is whole and another than `old`."""
    page.wait_for_function("old => document.querySelector('#steered-text').innerText !== old", arg=old)
    finished(page)
    return page.locator("#steered-text").inner_text()


def test_there_and_back_and_what_cannot_be_loaded(window: BrowserContext, tmp_path: Path) -> None:
    first, other = saved(tmp_path / "first", "gemma3"), saved(tmp_path / "other", "qwen3")
    with app_page(window, tmp_path, "--model", first) as page:
        finished(page)
        one = page.locator("#steered-text").inner_text()
        page.locator("#model-more button, #model-more .label-wrap").first.click()

        choose(page, other)
        expect(page.locator("#header")).to_contain_text("Qwen3ForCausalLM")
        two = answered(page, one)

        for wrong, said in (
            (str(tmp_path / "nothing here"), "Unknown model"),
            (broken(tmp_path / "a", "config.json", hidden_size=48), "other shapes than its config.json says"),
        ):
            choose(page, wrong)
            expect(page.locator("#header [role=alert]")).to_contain_text(said)
            expect(page.locator("#header")).to_contain_text("Qwen3ForCausalLM")
            expect(page.locator("#model input")).to_have_value(other)
            page.wait_for_function(SAYS, arg=two)

        choose(page, first)
        expect(page.locator("#header")).to_contain_text("Gemma3ForCausalLM")
        page.wait_for_function(SAYS, arg=one)
