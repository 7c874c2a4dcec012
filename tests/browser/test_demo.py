"""The real page and engine on the bundled model: steering, then a whole heal run, then other models."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests import tiny
from tests.browser.conftest import app_page, finished
from tests.browser.test_page import WATCH_BASE, drag_alpha, enter, nodes, text, type_into, unfold

PATIENCE = 240_000
OTHERS = """data.n_plain=8
data.max_new_tokens=24
extract.n_contexts=32
calibrate.n_prompts=4
calibrate.n_tokens=8
evaluate.frame=choice
evaluate.n_answers=4
evaluate.controls=0"""
SAYS = "answer => document.querySelector('#steered-text').innerText === answer"


def launch_small(page: Page, name: str) -> None:
    """A round, as small as the form allows to be useful."""
    for more in ("run-more", "run-every"):
        unfold(page, more)
    type_into(page, "#run-others", OTHERS)
    for box, value in (("rounds", 1), ("run-completions", 16), ("run-vignettes", 7), ("run-epochs", 1)):
        type_into(page, f"#{box}", str(value))
    type_into(page, "#run-name", name)
    page.locator("#launch").click()


@pytest.fixture(scope="module")
def demo(window: BrowserContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with app_page(window, tmp_path_factory.mktemp("demo"), "--model", "demo") as page:
        page.set_default_timeout(PATIENCE)
        yield page


@pytest.mark.timeout(900)
def test_steer_heal_watch_and_find_it_again(demo: Page) -> None:
    demo.wait_for_selector("#steered-text .sh-t")
    finished(demo)
    assert "not Gemma" in text(demo, "#header")
    expect(demo.locator("#bars")).to_contain_text("SocialNorms")

    base, steered = text(demo, "#base-text"), text(demo, "#steered-text")
    demo.evaluate(WATCH_BASE)
    drag_alpha(demo, 3.5)
    demo.wait_for_function("old => document.querySelector('#steered-text').innerText !== old", arg=steered)
    finished(demo)
    assert text(demo, "#base-text") == base
    assert demo.evaluate("window.baseChanges") == 0
    expect(demo.locator("#verdict .sh-word")).not_to_have_text("fine")

    before = nodes(demo, "healed")
    launch_small(demo, "browser test")
    drag_alpha(demo, 1.0)
    demo.wait_for_function(
        "n => (document.querySelector('#map .sh-plot').data || [])"
        ".find(t => t.name === 'healed')?.x.length === n",
        arg=before + 1,
    )
    finished(demo)
    row = demo.locator("#runs tr", has_text="browser test")
    expect(row).to_contain_text("finished", timeout=PATIENCE)

    demo.reload()
    demo.wait_for_selector("#map .point")
    assert nodes(demo, "healed") == before + 1
    row.locator("[data-action=open]").click()
    expect(demo.locator("#round")).to_contain_text("browser test")
    expect(demo.locator("#round")).to_contain_text("retention")
    demo.get_by_role("tab", name="What it says").click()
    expect(demo.locator("#round-answers td").first).not_to_be_empty()
    demo.get_by_role("tab", name="Completions").click()
    expect(demo.locator("#round-completions tbody tr").first).to_be_visible()


def saved(folder: Path, arch: tiny.Arch) -> str:
    return tiny.save(tiny.language_model(arch, n_layers=5), folder)


def answered(page: Page, old: str) -> str:
    """The steered answer in view, once it is whole and another than `old`."""
    page.wait_for_function("old => document.querySelector('#steered-text').innerText !== old", arg=old)
    finished(page)
    return text(page, "#steered-text")


def test_models_are_switched_there_and_back_and_what_cannot_be_loaded_is_said(
    demo: Page, tmp_path: Path
) -> None:
    first, other = saved(tmp_path / "first", "llama"), saved(tmp_path / "other", "qwen3")
    broken = saved(tmp_path / "broken", "llama")
    config = tmp_path / "broken" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 48}))
    finished(demo)
    unfold(demo, "model-more")
    of_demo = text(demo, "#steered-text")
    enter(demo, "#model", first)
    expect(demo.locator("#header")).to_contain_text("LlamaForCausalLM")
    one = answered(demo, of_demo)
    enter(demo, "#model", other)
    expect(demo.locator("#header")).to_contain_text("Qwen3ForCausalLM")
    two = answered(demo, one)
    for wrong, said in (
        (str(tmp_path / "nothing here"), "Unknown model"),
        (broken, "other shapes than its config.json says"),
    ):
        enter(demo, "#model", wrong)
        expect(demo.locator("#header [role=alert]")).to_contain_text(said)
        expect(demo.locator("#header")).to_contain_text("Qwen3ForCausalLM")
        expect(demo.locator("#model input")).to_have_value(other)
        demo.wait_for_function(SAYS, arg=two)
    enter(demo, "#model", first)
    expect(demo.locator("#header")).to_contain_text("LlamaForCausalLM")
    demo.wait_for_function(SAYS, arg=one)
