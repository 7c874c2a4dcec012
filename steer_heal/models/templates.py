"""A bound on what a chat template may write: it is someone's program, and transformers' sandbox has none."""

from collections.abc import Iterable
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARS = 1_000_000
"""Far more than any chat of ours; also the greatest number that a product or power in a template may be."""


class Bounded(ImmutableSandboxedEnvironment):
    """The sandbox in which a product, a power or a text beyond `MOST_CHARS` is refused before it is made."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        _check(sizes[0] * sizes[1] if operator == "*" else sizes[0] ** min(sizes[1], 20))  # 2**20 is too much
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """The parts as one text, read no further than they may go."""
        written, length = [], 0
        for part in parts:
            length += len(part)
            _check(length)
            written.append(part)
        return "".join(written)


def _check(size: float) -> None:
    if size > MOST_CHARS:
        raise SecurityError(
            f"it writes more than {MOST_CHARS:,} characters; repair its chat_template.jinja, or the "
            "chat_template in its tokenizer_config.json"
        )
