"""Pictures of the page for the documentation: `python -m benchmarks.screenshots [--out DIR] [--model M]`.

A real server with smollm2 and a real headless browser: 390, 1400 and 1920 px wide, light and dark, a round.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from steer_heal.config import SMOLLM2
from tests.browser.conftest import ROOT, app
from tests.conftest import CHROMIUM, FLAGS

PATIENCE = 600_000
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
LARGE = {"width": 1920, "height": 1080}
DONE = "document.querySelector('#status .sh-status')?.innerText.startsWith('done')"


def visit(browser: Browser, url: str, size: dict[str, int], scheme: str) -> Page:
    """The page once it has answered and drawn the map."""
    page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_function(DONE)
    page.locator("#tour [data-tour=skip]:visible").click()
    if page.locator("#map .point").count() == 0:  # the example is of another model
        page.locator("#runs [data-action=show]").last.click()
    page.wait_for_selector("#map .point")
    page.wait_for_selector("#bars .sh-bg-steered")
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    return page


def measure(page: Page, out: Path) -> None:
    """Where the text breaks."""
    page.locator("#dose-find").click()
    page.wait_for_function("document.querySelector('#dose-note').innerText.includes('Click the chart')")
    page.wait_for_timeout(500)
    page.screenshot(path=out / "dose.png")


def take(browser: Browser, url: str, out: Path) -> None:
    """All pictures of one running page; what takes longest last."""
    sizes = {"page": WIDE, "page-large": LARGE, "narrow": NARROW}
    for scheme, (name, size) in product(("light", "dark"), sizes.items()):
        page = visit(browser, url, size, scheme)
        page.screenshot(
            path=out / f"{name}{'-dark' if scheme == 'dark' else ''}.png", full_page=size is NARROW
        )
        page.close()
    page = visit(browser, url, WIDE, "light")
    page.locator("#runs [data-action=open]").last.click()
    page.wait_for_selector("#round-bars .sh-bg-healed")
    page.wait_for_timeout(500)
    page.screenshot(path=out / "round.png")
    measure(page, out)
    page.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots", metavar="DIR")
    parser.add_argument("--model", default=SMOLLM2)
    args = parser.parse_args()
    if CHROMIUM is None:
        print("No chromium on this machine: install one to take the pictures.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with app(Path(folder), "--model", args.model) as url:
            take(browser, url, args.out)
        browser.close()
    for picture in sorted(args.out.glob("*.png")):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
