"""A network's modules and values as they stand, to be compared with and to be put back."""

from copy import copy
from typing import Any

from torch import nn

from steer_heal.models.identity import tensor_hash


class Kept:
    """What a network is made of now: what each of its modules holds, and its parameters and buffers.

    `copies`: their values too, in the CPU's memory; without them, values that are changed in place stay so.
    """

    def __init__(self, network: nn.Module, *, copies: bool = False) -> None:
        self._modules = [
            (module, type(module), [(key, value, _content(value)) for key, value in vars(module).items()])
            for module in network.modules()
        ]
        self._tensors = [
            (one, one.detach(), one.requires_grad, one.detach().to("cpu", copy=True) if copied else None)
            for one in (*network.parameters(), *network.buffers())
            for copied in (copies and not one.is_meta,)
        ]

    def hashes(self) -> list[bytes]:
        """Of the values that its parameters and buffers have now, but for those that wait on disk."""
        return [tensor_hash(one) for one, *_ in self._tensors if not one.is_meta]

    def restore(self) -> None:
        """The modules hold again what they held, and the values are those kept."""
        for module, kind, entries in self._modules:
            module.__class__ = kind
            now = vars(module)
            for key in now.keys() - {key for key, *_ in entries}:
                del now[key]
            for key, value, content in entries:
                if isinstance(value, list):
                    value[:] = content
                elif content is not None:
                    value.clear()
                    value.update(content)
                now[key] = value
        for tensor, values, asks, kept in self._tensors:
            tensor.data = values
            if kept is not None:
                values.copy_(kept)
            tensor.requires_grad_(asks)


def _content(value: Any) -> Any:
    """A shallow copy of what is changed in place: hooks, parts and settings by name."""
    return copy(value) if isinstance(value, dict | list | set) else None
