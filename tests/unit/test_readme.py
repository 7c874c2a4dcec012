"""Every command that the README and the guide to other tools name is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import app
from steer_heal.cli.arguments import parser

ROOT = Path(__file__).parents[2]
DOCS = ("README.md", "docs/ecosystem.md")


def commands(start: str) -> list[str]:
    """Arguments of each such command in a shell block; what follows `#` is a remark."""
    blocks = re.findall(r"```sh\n(.*?)```", "".join((ROOT / name).read_text() for name in DOCS), re.DOTALL)
    found = [line for block in blocks for line in block.splitlines()]
    return sorted({line.partition(start)[2].split("#")[0].strip() for line in found if start in line})


@pytest.mark.parametrize("line", sorted({*commands("$S "), *commands("-m steer_heal ")}))
def test_a_command_is_taken(line: str) -> None:
    module = parser().parse_args(shlex.split(line.strip('"'))).module
    assert callable(import_module(f"steer_heal.cli.{module}").run)


@pytest.mark.parametrize("line", commands("python app.py"))
def test_the_page_starts_with_what_is_named(line: str) -> None:
    assert app.arguments(shlex.split(line)).port == 7860
