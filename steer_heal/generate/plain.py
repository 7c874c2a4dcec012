"""Prompts and then one token a step, through transformers' own forward: any model, hooks and steering."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steer_heal.generate.prefill import Prefilled, prefill
from steer_heal.generate.rows import Lane
from steer_heal.generate.store import PrefixStore
from steer_heal.models import LanguageModel
from steer_heal.vectors.steering import Operator, steering_of


class PlainReader:
    """The lanes of a batch after what they have read so far."""

    def __init__(
        self,
        lm: LanguageModel,
        lanes: Sequence[Lane],
        directions_LD: Tensor | Operator,
        room: int,
        store: PrefixStore | None,
    ) -> None:
        self._lm = lm
        self._steering = steering_of(directions_LD, torch.stack([lane.coefficients_L for lane in lanes]))
        self._state: Prefilled = prefill(lm, lanes, directions_LD, room, store)

    @property
    def logits_BV(self) -> Tensor:
        """Of each lane's next token."""
        return self._state.logits_BV

    def keep(self, kept: Sequence[int]) -> None:
        """The lanes that stay, by their numbers here and in their new order; one named twice becomes two."""
        index, state = torch.tensor(kept, device=self._lm.device), self._state
        state.cache.batch_select_indices(index)
        self._steering.keep(index)
        mask_BT = None if state.mask_BT is None else state.mask_BT[index]
        self._state = Prefilled(state.logits_BV[:0], state.cache, mask_BT, state.positions_B[index])

    def advance(self, ids: Sequence[int]) -> None:
        """Read one token a lane; `logits_BV` are then those of the next."""
        state = self._state
        mask_BT = state.mask_BT
        if mask_BT is not None:
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(ids), 1)], dim=1)
        with self._steering.attached(self._lm.blocks):
            output = self._lm.model(
                input_ids=torch.tensor(ids, device=self._lm.device)[:, None],
                attention_mask=mask_BT,
                position_ids=state.positions_B[:, None],
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._state = Prefilled(output.logits[:, -1], state.cache, mask_BT, state.positions_B + 1)
