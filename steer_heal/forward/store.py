"""Prompts already read without steering, so that a moved slider reads only the steered blocks again."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from steer_heal.forward.prefix_batch import Ids, Read


class PrefixStore:
    """The last `size` prompts.

    Valid for one model in one state: make a new one when the weights change. `every_layer`: keep the residual
    behind every block, so that the band may move, and not only behind the block that is asked for.
    """

    def __init__(self, size: int = 4, *, every_layer: bool = True) -> None:
        self._size, self._every_layer = size, every_layer
        self._reads: OrderedDict[Ids, Read] = OrderedDict()

    def get(
        self,
        prompts: Sequence[Ids],
        layers: Collection[int],
        n_layers: int,
        make: Callable[[list[Ids], int, Collection[int]], Sequence[Read]],
    ) -> list[Read]:
        """What `make` made of each prompt; it is asked only for those not here with the residuals wanted."""
        wanted = set(layers)
        missing = [prompt for prompt in prompts if not wanted <= self._layers(prompt)]
        new = make(missing, n_layers, range(n_layers) if self._every_layer else wanted) if missing else []
        made = dict(zip(missing, new, strict=True))
        found = [made[prompt] if prompt in made else self._reads.pop(prompt) for prompt in prompts]
        self._reads.update(zip(prompts, found, strict=True))
        while len(self._reads) > self._size:
            self._reads.popitem(last=False)
        return found

    def _layers(self, prompt: Ids) -> set[int]:
        return set(self._reads[prompt].residuals) if prompt in self._reads else set()
