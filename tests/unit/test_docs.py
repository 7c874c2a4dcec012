"""What the documentation names is there: pages, links, files, modules, commands."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import app
from steer_heal.cli.arguments import parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + sorted(
    path for path in DOCS.rglob("*.md") if path.parent.name != "reports"
)
"""Pages for readers; reports are of their day."""
PAGES = [*GUIDES, *sorted((DOCS / "reports").glob("*.md"))]
HTML_ONLY = re.compile(r"\{[^}]*\}|`|\*|<[^>]+>|\\")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def leaves(nav: Any) -> Iterator[str]:
    """Every page that the navigation leads to."""
    for entry in nav:
        for value in entry.values():
            yield from leaves(value) if isinstance(value, list) else [value]


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as mkdocs and GitHub make them of its headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = [HTML_ONLY.sub("", said).lower() for said in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", said).strip()) for said in headings}


def commands(start: str) -> list[str]:
    """Arguments of each such command in a shell block; what follows `#` is a remark."""
    blocks = re.findall(r"```sh\n(.*?)```", "".join(path.read_text() for path in GUIDES), re.DOTALL)
    found = [line for block in blocks for line in block.splitlines()]
    return sorted({line.partition(start)[2].split("#")[0].strip() for line in found if start in line})


def test_the_navigation_leads_to_every_page_and_to_no_other():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(leaves(nav)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, place = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        assert not place or place in anchors(target), f"{name_of(page)} links to {link}"
        outside = DOCS in page.parents and DOCS not in target.parents
        assert not outside, f"{name_of(page)} links to {link}, which is no page of the site"


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_file_that_is_named_is_there(page):
    named = re.findall(
        r"`((?:steer_heal|components|tests|docs|scripts|notebooks|deploy)/[^`\s]*)`", page.read_text()
    )
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_room_of_the_engine_has_its_reference():
    said = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    modules = set(re.findall(r"^::: ([\w.]+)$", said, re.MULTILINE))
    rooms = {f"steer_heal.{path.parent.name}" for path in (ROOT / "steer_heal").glob("*/__init__.py")}
    assert modules == {*rooms, "steer_heal.records", "components"} - {"steer_heal.cli", "steer_heal.data"}


@pytest.mark.parametrize("line", sorted({*commands("$S "), *commands("-m steer_heal ")}))
def test_a_command_is_taken(line: str) -> None:
    module = parser().parse_args(shlex.split(line.split(">")[0])).module
    assert callable(import_module(f"steer_heal.cli.{module}").run)


@pytest.mark.parametrize("line", commands("python app.py"))
def test_the_page_starts_with_what_is_named(line: str) -> None:
    assert app.arguments(shlex.split(line)).port == 7860
