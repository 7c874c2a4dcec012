"""A key/value cache with room for the whole answer: a step writes one column instead of copying all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steer_heal.config import SettingsError


class RoomyLayer(DynamicLayer):
    """Keys and values of one block, (B, heads, T, width), as views of a larger buffer.

    Sliding-window blocks keep every column too: the model's own mask hides what lies outside the window.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._room = room
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append columns; returns all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [_buffer(states, end + self._room) for states in (key_states, value_states)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, in this order."""
        end = self.get_seq_length()
        self._buffers = [buffer[indices.to(buffer.device)] for buffer in self._buffers]
        self._show(end)

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


class RoomyCache(Cache):
    """A cache of `RoomyLayer`s: room for `room` columns beyond the first call's."""

    layers: list[RoomyLayer]

    def __init__(self, n_layers: int, room: int) -> None:
        super().__init__(layers=[RoomyLayer(room) for _ in range(n_layers)])


def _buffer(states: Tensor, columns: int) -> Tensor:
    rows, heads, _, width = states.shape
    return states.new_empty(rows, heads, columns, width)


def check_cache(config: PreTrainedConfig) -> None:
    """Refuse a model whose memory of the prompt is more than keys and values. Errors: `SettingsError`."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise SettingsError("This model keeps more than keys and values: choose one with plain attention.")


def gather(parts: Sequence[RoomyCache], shared_rows: Tensor, rows: Tensor, room: int) -> RoomyCache:
    """One cache whose row b is row `rows[b]` of `parts` laid end to end.

    Blocks that only the first part has filled are the same for all: there row b is its row `shared_rows[b]`.
    """
    made = RoomyCache(len(parts[0].layers), room)
    for number, layer in enumerate(made.layers):
        filled = [part.layers[number] for part in parts if part.layers[number].is_initialized]
        index = rows if len(filled) == len(parts) else shared_rows
        keys = torch.cat([part.keys for part in filled if part.keys is not None])
        values = torch.cat([part.values for part in filled if part.values is not None])
        layer.update(keys[index.to(keys.device)], values[index.to(values.device)])
    return made
