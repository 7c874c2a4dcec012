"""Prompts already read without steering, so that a moved slider reads only the steered blocks again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar, cast

Prompt = tuple[int, ...]


class Kept(Protocol):
    """A prompt that was read; `layers`: the blocks behind which its residual is kept."""

    @property
    def layers(self) -> Collection[int]: ...


R = TypeVar("R", bound=Kept)


class PrefixStore:
    """The last `size` prompts, each under the name of who read it.

    Valid for one model in one state: make a new one when the weights change. `every_layer`: keep the residual
    behind every block, so that the band may move, and not only behind the block that is asked for.
    """

    def __init__(self, size: int = 4, *, every_layer: bool = True) -> None:
        self._size, self._every_layer = size, every_layer
        self._reads: OrderedDict[tuple[str, Prompt], Kept] = OrderedDict()

    def get(
        self,
        reader: str,
        prompts: Sequence[Prompt],
        layers: Collection[int],
        n_layers: int,
        make: Callable[[list[Prompt], Collection[int]], Sequence[R]],
    ) -> list[R]:
        """What `make` made of each prompt; it is asked only for those not here with the residuals wanted."""
        wanted = set(layers)
        missing = [prompt for prompt in prompts if not wanted <= set(self._layers(reader, prompt))]
        new = make(missing, range(n_layers) if self._every_layer else wanted) if missing else []
        made = dict(zip(missing, new, strict=True))
        found = [made[p] if p in made else cast(R, self._reads.pop((reader, p))) for p in prompts]
        self._reads.update({(reader, prompt): read for prompt, read in zip(prompts, found, strict=True)})
        while len(self._reads) > self._size:
            self._reads.popitem(last=False)
        return found

    def _layers(self, reader: str, prompt: Prompt) -> Collection[int]:
        read = self._reads.get((reader, prompt))
        return () if read is None else read.layers

    def __contains__(self, prompt: Prompt) -> bool:
        return any(known == prompt for _, known in self._reads)
