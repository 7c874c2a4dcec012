"""The blocks beneath the first that is trained: read once an example, not once an epoch.

Nothing beneath it changes in a round, so what reaches it is the same in every epoch, for the student and for
the previous round's. A forward pass then begins there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from steer_heal.forward import FromBlock
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.examples import Example
from steer_heal.models import LanguageModel

KEPT_BYTES = 2 << 30
"""States kept for all examples take at most this much; what is beyond it is read anew with each batch."""


def first_trained(lm: LanguageModel, stack: AdapterStack) -> int:
    """The first block that holds a trained parameter; 0 where one lies outside the blocks, or none is."""
    found = set(map(id, stack.trainable()))
    holds = [{id(parameter) for parameter in block.parameters()} & found for block in lm.blocks]
    if sum(map(len, holds)) < len(found) or not found:
        return 0
    return next(layer for layer, some in enumerate(holds) if some)


class FrozenPrefix:
    """What reaches block `first`, kept an example at a time. With `first` 0 it does nothing.

    Good for as long as no adapter beneath `first` changes: one round.
    """

    def __init__(self, lm: LanguageModel, first: int) -> None:
        self._from = FromBlock(lm, first)
        self.first = self._from.first
        self.kept: dict[Example, Tensor] = {}
        self._bytes = 0

    @contextmanager
    def entered(self, batch: Sequence[Example]) -> Iterator[None]:
        """Forward passes over the batch, padded by `left_pad`, begin at `first`."""
        if not self.first:
            yield
            return
        with self._from.begun(self._states(batch)):
            yield

    def _states(self, batch: Sequence[Example]) -> list[Tensor]:
        """(T, D) of each row."""
        found = {row: self.kept[row] for row in batch if row in self.kept}
        if new := [row for row in dict.fromkeys(batch) if row not in found]:
            read = dict(zip(new, self._from.residuals([row.ids for row in new]), strict=True))
            found |= read
            for row, states_TD in read.items():
                if self._bytes + states_TD.nbytes <= KEPT_BYTES:
                    self.kept[row] = states_TD.clone()
                    self._bytes += states_TD.nbytes
        return [found[row] for row in batch]
