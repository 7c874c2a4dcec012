"""Long work of the engine that says in words what it does, for a handler that shows them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


def followed(work: Callable[[Say], T]) -> Iterator[str | T]:
    """What the work says, of several words at once the newest; last what it gives. Errors: the work's own."""
    with ThreadPoolExecutor(1) as pool:
        said: SimpleQueue[str | None] = SimpleQueue()
        working = pool.submit(work, said.put)
        working.add_done_callback(lambda _: said.put(None))
        for words in iter(said.get, None):
            if said.empty():  # else there are newer ones to tell
                yield words
    yield working.result()
