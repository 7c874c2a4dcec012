"""Any model, and steering by any operator, through transformers' own forward with hooks.

Nothing is shared: every row reads its whole prompt under its own steering.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steer_heal.config import EVERYWHERE, SettingsError
from steer_heal.forward.rows import Asked, Rows, picked
from steer_heal.forward.store import PrefixStore
from steer_heal.models import LanguageModel, Padded, left_pad
from steer_heal.records import Stopped
from steer_heal.vectors.steering import Looks, Operator, Steering, of_prompt, steering_of

Ids = tuple[int, ...]


class PlainRows(Rows):
    """Rows padded on the left: their texts, the logits of their last positions, and what reading on needs.

    `steering`: what they read on under.
    """

    def __init__(
        self, lm: LanguageModel, steering: Steering, texts: Sequence[Ids], batch: Padded, logits_BnV: Tensor,
        cache: Cache | None,
    ) -> None:  # fmt: skip
        self._lm, self.steering, self._texts, self._n_read = lm, steering, list(texts), 0
        self._logits_BnV, self.cache = logits_BnV, cache
        self.mask_BT = None if batch.full else batch.mask_BT
        self.positions_B = batch.positions_BT[:, -1] + 1

    @property
    def logits_BV(self) -> Tensor:
        return self._logits_BnV[:, -1]

    def read(self, ids_Bn: Tensor, n_ends: int = 1) -> None:
        assert self.cache is not None
        if self.mask_BT is not None:
            self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(ids_Bn.shape)], dim=1)
        steps_n = torch.arange(ids_Bn.shape[1], device=self.positions_B.device)
        positions_Bn = self.positions_B[:, None] + steps_n
        with self.steering.at(self._n_read).attached(self._lm.blocks):
            self._logits_BnV = logits_of(self._lm, ids_Bn, self.mask_BT, positions_Bn, self.cache, n_ends)
        self._n_read += len(steps_n)
        self.positions_B = self.positions_B + len(steps_n)
        self._texts = [(*text, *ids) for text, ids in zip(self._texts, ids_Bn.tolist(), strict=True)]

    def keep(self, kept: Sequence[int]) -> None:
        assert self.cache is not None
        index = torch.tensor(kept)
        self.cache.batch_select_indices(index)
        self.steering.keep(index)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[index]
        self.positions_B, self._logits_BnV = self.positions_B[index], self._logits_BnV[index]
        self._texts = [self._texts[row] for row in kept]

    def logits(self, rows: slice) -> Tensor:
        return self._logits_BnV[rows]

    def _further(self, words: Sequence[Sequence[int]]) -> Tensor | int:
        if all(len(ids) == 1 for ids in words):
            return 0
        added_BF = torch.zeros(len(self._texts), len(words), device=self._lm.device)
        for column, ids in enumerate(words):
            if len(ids) > 1:
                batch = left_pad([(*text, *ids) for text in self._texts], self._lm.pad_id, self._lm.device)
                with self.steering.attached(self._lm.blocks):
                    logits_BnV = _read_batch(self._lm, batch, None, len(ids))[:, :-1]
                wanted = torch.tensor(list(ids[1:]), device=logits_BnV.device)
                each = [picked(logits_nV, wanted).sum() for logits_nV in logits_BnV]
                added_BF[:, column] = torch.stack(each)
        return added_BF


class PlainForward:
    """A model with whatever steers it."""

    def __init__(self, lm: LanguageModel, directions_LD: Tensor | Operator) -> None:
        self._lm, self._directions_LD = lm, directions_LD

    def read(
        self, asked: Sequence[Asked], doses_KL: Tensor, *, room: int = 0, look: int = 0, batch_size: int = 32,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[tuple[list[int], Rows]]:  # fmt: skip
        """Rows of like length together, each under its dose."""
        by_length = sorted(range(len(asked)), key=lambda number: len(asked[number].ids))
        for start in range(0, len(asked), batch_size):
            if stop and stop():
                raise Stopped
            numbers = by_length[start : start + batch_size]
            some = [asked[number] for number in numbers]
            doses_BL, n_ends = doses_KL[[row.dose for row in some]], max(row.n_ends for row in some)
            yield numbers, self.apart([row.ids for row in some], doses_BL, room, n_ends)

    def begin(
        self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, *, n_more: int = 0,
        store: PrefixStore | None = None, gates: Sequence[str] = (), probe: Looks | None = None,
    ) -> Rows:  # fmt: skip
        """One row a prompt, each under its own coefficients and gate."""
        rows = self.apart(prompts, of_prompt(coefficients_BL, gates), room)
        if any(gate != EVERYWHERE for gate in gates):
            rows.steering = steering_of(self._directions_LD, coefficients_BL).gated(gates)
        rows.steering = rows.steering.probed(probe)
        return rows

    def apart(self, prompts: Sequence[Ids], coefficients_BL: Tensor, room: int, n_ends: int = 1) -> PlainRows:
        batch = left_pad(prompts, self._lm.pad_id, self._lm.device)
        cache = DynamicCache() if room else None
        steering = steering_of(self._directions_LD, coefficients_BL)
        with steering.attached(self._lm.blocks):
            logits_BnV = _read_batch(self._lm, batch, cache, n_ends)
        return PlainRows(self._lm, steering, prompts, batch, logits_BnV, cache)


def _read_batch(lm: LanguageModel, batch: Padded, cache: Cache | None, n_ends: int) -> Tensor:
    """Logits (B, n, V) at each row's last positions."""
    mask_BT = None if batch.full else batch.mask_BT
    return logits_of(lm, batch.ids_BT, mask_BT, batch.positions_BT, cache, n_ends)


def logits_of(
    lm: LanguageModel, ids_BT: Tensor, mask_BT: Tensor | None, positions_BT: Tensor, cache: Cache | None,
    n_ends: int,
) -> Tensor:  # fmt: skip
    return lm.model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=positions_BT,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=n_ends,
    ).logits


def check_cache(config: PreTrainedConfig) -> None:
    """Refuse a model whose memory of the prompt is more than keys and values. Errors: `SettingsError`."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise SettingsError("This model keeps more than keys and values: choose one with plain attention.")
