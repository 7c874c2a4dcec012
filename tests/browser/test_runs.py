"""Runs on the page: card, names, deletion, comparison, many on the map, a sweep; over the fake engine."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import fake_page, opened
from tests.browser.test_page import launch, nodes, quiet, text, type_into

HEALED = "document.querySelector('#map .sh-plot')._fullData.find((t) => t.name === 'healed')"
MARKS = """() => [...document.querySelectorAll('#map .textpoint text')].map((t) => {
  const r = t.getBoundingClientRect(); return [r.x, r.y, r.right, r.bottom]; })"""


def row(page: Page, name: str) -> Locator:
    return page.locator("#runs tr", has_text=name).first


def collide(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_two_presses_start_one_run_whose_card_stands_under_the_button(page: Page) -> None:
    quiet(page)
    before = page.locator("#runs tbody tr").count()
    launch(page, 5, 'pressed "twice"')
    page.locator("#launch").click()
    card = page.locator("#heal-card .sh-card", has_text='pressed "twice"')
    expect(card).to_contain_text(re.compile(r"round 1 of 5: .*, \d+ of 16, 2 a second · .* left"))
    button, box = page.locator("#launch").bounding_box(), card.bounding_box()
    assert 0 < box["y"] - button["y"] < 120
    page.wait_for_timeout(500)
    assert page.locator("#runs tbody tr").count() == before + 1
    expect(card).to_contain_text("healed so far: “<b>I would help</b>.”")
    card.locator("[data-action=pause]").click()
    expect(card).to_contain_text(re.compile("paused in round [2-5]"))
    card.locator("[data-action=cancel]").click()
    expect(card).to_contain_text("cancelled")
    card.locator("[data-action=open]", has_text="round 1").click()
    expect(page.locator("#round h3")).to_contain_text("round 1")
    expect(card).to_have_count(0)
    page.locator("#round [data-action=open]", has_text="base").click()
    expect(page.locator("#round h3")).to_contain_text("before the first round")
    expect(page.locator("#round [aria-pressed=true]")).to_have_text("base")


def test_a_look_that_began_before_a_press_and_comes_after_it_does_not_bring_back_what_was_put_away(
    page: Page,
) -> None:
    quiet(page)
    launch(page, 1, "put away")
    card = page.locator("#heal-card .sh-card", has_text="put away: finished")
    expect(card).to_have_count(1)
    quiet(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        is_look = "mark" in (route.request.post_data_json.get("event_data") or {})
        held.append(route) if is_look else route.continue_()

    page.route("**/queue/join*", hold)
    row(page, "put away").locator("[data-action=hide]").click()  # which makes the page look
    for _ in range(100):
        page.wait_for_timeout(100)
        if held:
            break
    card.locator("[data-action=open]", has_text="round 1").click()
    expect(card).to_have_count(0)
    for look in held:
        look.continue_()
    page.unroute("**/queue/join*")
    page.wait_for_timeout(3000)
    assert held
    expect(card).to_have_count(0)


def test_a_vector_that_is_no_better_than_random_is_healed_when_it_is_pressed_again(page: Page) -> None:
    launch(page, 1, "doubtful")
    said = page.locator("#heal-message")
    expect(said).to_contain_text("Not started: it moves by +0.067, and 3 of 3 random directions")
    expect(row(page, "doubtful")).to_have_count(0)
    page.wait_for_timeout(2100)
    page.locator("#launch").click()
    expect(row(page, "doubtful")).to_be_visible()
    expect(said).not_to_contain_text("Not started")
    launch(page, 1, "the one")
    launch(page, 1, "the other")  # at once, and no second press
    for name in ("the one", "the other"):
        expect(page.locator("#runs tr", has_text=name)).to_have_count(1)
    quiet(page)


def test_a_run_is_compared_renamed_hidden_and_deleted_after_asking(page: Page) -> None:
    quiet(page)
    launch(page, 1, "to be deleted")
    expect(row(page, "to be deleted")).to_contain_text("finished")
    row(page, "to be deleted").locator("[data-action=open]").click()
    page.get_by_role("tab", name="Beside another run").click()
    page.locator("#compare-with input").click()
    page.get_by_role("option", name="Example").click()
    compared = page.locator("#compare")
    expect(compared).to_contain_text("I would help")
    expect(compared.locator("tr", has_text="rounds")).to_contain_text("1")
    assert compared.locator(".sh-bars").count() == 2
    page.once("dialog", lambda dialog: dialog.accept('now "renamed" <b>'))
    row(page, "to be deleted").locator("[data-action=rename]").click()
    renamed = row(page, 'now "renamed" <b>')
    renamed.locator("[data-action=hide]").click()
    expect(renamed).to_have_count(0)
    page.locator("#runs [data-action=all]").click()
    page.once("dialog", lambda dialog: dialog.dismiss())
    renamed.locator("[data-action=delete]").click()
    page.wait_for_timeout(300)
    expect(renamed).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    renamed.locator("[data-action=delete]").click()
    expect(renamed).to_have_count(0)
    page.locator("#runs-message [data-action=restore]").click()
    expect(renamed).to_be_visible()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with twelve runs of three rounds of its model, and one of another."""
    with fake_page(tmp_path_factory.mktemp("many"), "2", "0.02", "13") as url:
        yield url


@pytest.fixture
def many(tab: Page, crowded: str) -> Iterator[Page]:
    yield from opened(tab, crowded)


def test_twelve_runs_read_well(many: Page) -> None:
    """Also: what chips and legend take off the map, what is saved of it, and how another model is marked."""
    chips = many.locator("#map-key .sh-chip")
    assert chips.count() == 13
    assert chips.first.inner_text().startswith('N "12" which is')
    while (off := many.locator("#map-key [aria-pressed=false]")).count():
        n = off.count()
        off.first.click()
        expect(off).to_have_count(n - 1)
    many.wait_for_function(f"{HEALED}.x.length === 38")
    marks = many.evaluate(MARKS)
    assert len(marks) > 6
    assert not any(collide(a, b) for i, a in enumerate(marks) for b in marks[:i])
    assert "white" not in many.evaluate(f"{HEALED}.marker.color")
    row(many, '"0"').locator("[data-action=show]").click()
    many.wait_for_function(f"{HEALED}.marker.color.filter((c) => c === 'white').length === 3")
    expect(many.locator("#map-key")).to_contain_text("hollow: of another model")
    assert "more of care over authority is up and left" in text(many, "#map-key")
    many.locator("#map .legendtoggle").last.click()
    many.wait_for_function(f"{HEALED}.visible === 'legendonly'")
    for kind in ("svg", "png", "csv"):
        with many.expect_download() as saved:
            many.locator(f"#map-key [data-download={kind}]").click()
        path = saved.value.path()
        assert saved.value.suggested_filename == f"steer-heal-map.{kind}"
        assert path.stat().st_size > 1000
    lines = path.read_text().splitlines()
    assert "SocialNorms" in lines[0]
    assert len(lines) == 1 + 5 + 13 * 7


def test_a_sweep_from_its_form_to_its_chart(many: Page) -> None:
    """After the test of twelve runs: a sweep's runs take their places on the map."""
    many.get_by_role("button", name="Several runs: a sweep").click()
    type_into(many, "#rounds", "1")
    type_into(many, "#sweep-axes", "train.divergance=nll")
    said = many.locator("#sweep-said")
    expect(said).to_contain_text("perhaps train.divergence")
    type_into(many, "#sweep-axes", "train.divergence=nll,kl_rev\nseed=3,4")
    expect(said).to_contain_text("4 runs, 1 at a time. Time: about 6 min")
    many.locator("#sweep-start").click()
    expect(said).to_contain_text("4 runs are queued")
    sweep = many.locator("#sweeps tbody tr", has_text="train.divergence").first
    expect(sweep).to_contain_text("4 finished")
    expect(many.locator("#sweep h3")).to_contain_text("train.divergence")
    expect(many.locator("#sweep")).to_contain_text("no different")
    for name in ("front", "settings", "runs"):
        expect(many.locator("#sweep-chart .legendtext", has_text=re.compile(f"^{name}$"))).to_be_visible()
    shown, press = sweep.locator("[role=checkbox]"), sweep.locator("[data-action=show-sweep]")
    expect(shown).to_have_attribute("aria-checked", "true")  # the newest runs are
    points = "document.querySelector('#map .sh-plot').data.find(t => t.name === 'healed').x.length"
    with_it = nodes(many, "healed")
    press.click()
    expect(shown).to_have_attribute("aria-checked", "false")
    many.wait_for_function(f"{points} < {with_it}")
    press.click()
    expect(shown).to_have_attribute("aria-checked", "true")
    sweep.locator("[data-action=open-sweep]").click()  # while the last press is being drawn
    expect(many.locator("#sweep h3")).to_have_count(0)
