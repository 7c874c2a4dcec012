"""A hook of mkdocs: puts what every command says of itself in place of `<!-- commands -->`."""

from typing import Any

from steer_heal.cli.arguments import COMMANDS, Parser

MARK = "<!-- commands -->"


class Collected:
    """Stands for `add_subparsers`: keeps each command's parser by its name."""

    def __init__(self) -> None:
        self.parsers: dict[str, Parser] = {}

    def add_parser(self, name: str, *, help: str, **options: Any) -> Parser:
        """As argparse's own; `help` is for the list of commands, which the page has as headings."""
        self.parsers[name] = Parser(prog=f"steer-heal {name}", **options)
        return self.parsers[name]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    if MARK not in markdown:
        return markdown
    collected = Collected()
    for add in COMMANDS:
        add(collected)
    helped = (
        f"## {name}\n\n```text\n{made.format_help()}```" for name, made in sorted(collected.parsers.items())
    )
    return markdown.replace(MARK, "\n\n".join(helped))
