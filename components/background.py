"""Long work in a thread of its own, heard of while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


def in_background(work: Callable[[Say], T]) -> Iterator[tuple[str, T | None]]:
    """(what is being done, None) each time `work` says something new, and at the end ("", its result).

    What `work` raises is raised here.
    """
    said: SimpleQueue[str | None] = SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, said.put)
        future.add_done_callback(lambda _done: said.put(None))
        before = None
        while (text := said.get()) is not None:
            while not said.empty() and (newer := said.get_nowait()) is not None:
                text = newer
            if text != before:
                before = text
                yield text, None
            if future.done():
                break
        yield "", future.result()
