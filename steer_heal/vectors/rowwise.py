"""Steering that adds no fixed direction: what changes a residual is asked one row of the batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from steer_heal.config import SettingsError
from steer_heal.vectors.steering import Steering


class Changes(Protocol):
    """A change of the residual with one strength a layer; strength 0 is not asked and changes nothing."""

    @property
    def n_layers(self) -> int: ...

    def modules(self, block: nn.Module, layer: int) -> list[tuple[str, nn.Module]]:
        """What is hooked in a block, by the operator's own key; none where it knows no direction."""
        ...

    def change(self, key: str, module: nn.Module, inputs: Tensor, output: Tensor, strength: float) -> Tensor:
        """The new output of one row, (1, T, D)."""
        ...


class RowwiseSteering(Steering):
    """The coefficient matrix for an operator: row b of a hooked module's output, where C[b, l] is not 0.

    A residual of zeros, as padding has in many models, has no direction to turn and stays as it is.
    """

    def __init__(self, operator: Changes, coefficients_BL: Tensor) -> None:
        if coefficients_BL.ndim != 2 or coefficients_BL.shape[1] != operator.n_layers:
            raise ValueError(f"coefficients {tuple(coefficients_BL.shape)} for {operator.n_layers} layers")
        if not torch.isfinite(coefficients_BL).all():
            raise SettingsError("A coefficient is not a finite number: choose another alpha.")
        self._operator = operator
        self._coefficients_BL = coefficients_BL.detach().float().cpu()
        self._layers = tuple(self._coefficients_BL.ne(0).any(dim=0).nonzero().flatten().tolist())

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def times(self, shares_BT: Tensor) -> Self:
        """Errors: `SettingsError` where the positions of a row get different shares."""
        if shares_BT.shape[1] != 1:
            raise SettingsError("This method steers whole texts: choose one that adds a direction.")
        made = copy(self)
        made._coefficients_BL = self._coefficients_BL * shares_BT
        return made

    def keep(self, rows: Tensor) -> None:
        self._keep_gates(rows)
        self._coefficients_BL = self._coefficients_BL[rows.cpu()]

    @contextmanager
    def attached(self, blocks: Sequence[nn.Module]) -> Iterator[Self]:
        with ExitStack() as hooks:
            for layer in self._layers:
                for key, module in self._operator.modules(blocks[layer], layer):
                    hooks.callback(module.register_forward_hook(self._hook(layer, key)).remove)
            yield self

    def _hook(self, layer: int, key: str) -> Any:
        def change(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._changed(layer, key, module, inputs[0], output[0]), *output[1:])
            return self._changed(layer, key, module, inputs[0], output)

        return change

    def _changed(self, layer: int, key: str, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        strength_B = self._coefficients_BL[:, layer].tolist()
        if len(strength_B) == 1:
            strength_B = strength_B * len(output)
        rows = [
            self._operator.change(key, module, inputs[b : b + 1], output[b : b + 1], strength)
            if strength
            else output[b : b + 1]
            for b, strength in enumerate(strength_B)
        ]
        changed = torch.cat(rows).to(output)
        return torch.where(output.ne(0).any(dim=-1, keepdim=True), changed, output)
