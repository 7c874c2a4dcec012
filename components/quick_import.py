"""Gradio, imported in half the time."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def import_gradio() -> None:
    """Imports gradio without the interface files (.pyi) that it writes beside its components for editors: it
    parses the source of every component twice for them, at each start, half of the time of its import."""
    with _components_without_source():
        import_module("gradio")


@contextmanager
def _components_without_source() -> Iterator[None]:
    """Gradio writes none for a class whose source file is not known."""
    source_file = inspect.getfile

    def without_components(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("not looked for")
        return source_file(thing)

    inspect.getfile = without_components
    try:
        yield
    finally:
        inspect.getfile = source_file
