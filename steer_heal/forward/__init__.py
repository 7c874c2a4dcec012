"""The one door to the network: who reads prompts, steps, or scores texts asks here.

Behind it stand two implementations: our own blocks for the architectures that we know (the same numbers, less
work), and transformers' own forward for any other model and any way of steering.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from steer_heal.forward.from_block import FromBlock
from steer_heal.forward.known import is_known
from steer_heal.forward.ours import OurForward
from steer_heal.forward.plain import PlainForward, check_cache
from steer_heal.forward.rows import Asked, Rows
from steer_heal.forward.store import PrefixStore
from steer_heal.models import LanguageModel
from steer_heal.vectors.steering import Directions, Looks, Operator


class Forward(Protocol):
    """A model as it stands, with what steers it."""

    def begin(
        self, prompts: Sequence[tuple[int, ...]], coefficients_BL: Tensor, room: int, *,
        n_more: int = 0, store: PrefixStore | None = None, gates: Sequence[str] = (),
        probe: Looks | None = None,
    ) -> Rows:  # fmt: skip
        """Prompts read as rows in this order, each under its own coefficients; `room` tokens can follow.

        `n_more`: how many rows may come to be beside them. `store` keeps prompts for the next call on the
        same weights. `gates`: one a row, where not every token is steered; then one token is read at a time.
        `probe`: shown the residuals of what is read on.
        """
        ...

    def read(
        self, asked: Sequence[Asked], doses_KL: Tensor, *, room: int = 0, look: int = 0, batch_size: int = 32,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[list[int], Rows]]:  # fmt: skip
        """Many rows, some at a time in the order that is cheapest, with their numbers in `asked`.

        `doses_KL`: the coefficients that they name. `room`: how many tokens they can read on; `look`: how
        many tokens the words have that they are asked about, but for the first ones. Raises `Stopped` when
        `stop()` says so.
        """
        ...


def open(lm: LanguageModel, directions_LD: Tensor | Operator | None = None) -> Forward:
    """The door to the model as it stands now: good until its weights, hooks or adapters change.

    `directions_LD`: one direction a layer, or those of M vectors, or what steers instead; None where no row
    is steered.
    """
    if directions_LD is None:
        directions_LD = torch.zeros(lm.n_layers, lm.width)
    if isinstance(directions_LD, Tensor | Directions) and is_known(lm):
        return OurForward(lm, directions_LD)
    return PlainForward(lm, directions_LD)


def holds_on(lm: LanguageModel, directions_LD: Tensor | Operator) -> bool:
    """Whether rows that were begun read on with the adapters that were on the model then, whatever is put on
    it or taken off since: our own blocks hold on to the layers themselves, transformers' forward does not."""
    return isinstance(directions_LD, Tensor | Directions) and is_known(lm)
