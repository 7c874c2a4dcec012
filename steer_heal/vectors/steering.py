"""The coefficient matrix: row b's residual after block l gets C[b, l] * v[l] at every position.

Where several vectors v[0] to v[M - 1] are mixed, C has one more axis: the row gets the sum over m of
C[b, l, m] * v[m, l]. Where a row has a gate, what it gets at a position is the gate's share of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from steer_heal.config import EVERYWHERE, SettingsError, steered_share


def coefficients(n_layers: int, layers: Sequence[int], c: float, rows: int = 1) -> Tensor:
    """A (rows, L) float32 matrix holding `c` at `layers` and 0 elsewhere. Errors: `SettingsError`."""
    outside = [layer for layer in layers if not 0 <= layer < n_layers]
    if outside:
        raise SettingsError(f"The model has layers 0-{n_layers - 1}, not {outside[0]}.")
    matrix = torch.zeros(rows, n_layers)
    matrix[:, list(layers)] = c
    return matrix


def of_prompt(coefficients_BL: Tensor, gates: Sequence[str]) -> Tensor:
    """The coefficients that the rows' prompts are read under."""
    if all(gate == EVERYWHERE for gate in gates):
        return coefficients_BL
    shares_B = torch.tensor([steered_share(gate, -1) for gate in gates], device=coefficients_BL.device)
    return coefficients_BL * shares_B.view(-1, *[1] * (coefficients_BL.ndim - 1))


def shares(gate: str, lengths: Sequence[tuple[int, int]]) -> Tensor | None:
    """The gate's share at each token of rows of so many prompt and answer tokens, padded on the left, (B, T);
    None where it is 1 everywhere."""
    if gate == EVERYWHERE:
        return None
    longest = max(map(sum, lengths))
    rows = [
        [steered_share(gate, -1)] * (longest - answer) + [steered_share(gate, at) for at in range(answer)]
        for _, answer in lengths
    ]
    return torch.tensor(rows)


class Looks(Protocol):
    """What is shown residuals as they are read, changes of them included."""

    layers: tuple[int, ...]

    def look(self, layer: int, hidden_BTD: Tensor) -> None: ...


class Operator(Protocol):
    """What steers in another way than by adding one direction a layer."""

    def steering(self, coefficients_BL: Tensor) -> Steering:
        """The coefficient matrix for it."""
        ...


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions (M, L, D) of several vectors. Those that are `ablated` are not added: the coefficient is the
    share of what the residual has along them that is taken away, h -> h - c (h . u) u, u of unit length."""

    directions_MLD: Tensor
    ablated: tuple[bool, ...]

    def steering(self, coefficients_BL: Tensor) -> Steering:
        """The matrix for coefficients (B, L, M)."""
        added, ablated = torch.tensor(self.ablated).logical_not(), torch.tensor(self.ablated)
        made = Steering(self.directions_MLD[added], coefficients_BL[..., added])
        return made.ablating(self.directions_MLD[ablated], coefficients_BL[..., ablated])


def n_mixed(directions: Tensor | Operator) -> tuple[int, ...]:
    """What the shape of a row's coefficients has beyond its layers: (M,) for several vectors, else ()."""
    if isinstance(directions, Directions):
        directions = directions.directions_MLD
    return tuple(directions.shape[:-2]) if isinstance(directions, Tensor) else ()


def steering_of(directions: Tensor | Operator, coefficients_BL: Tensor) -> Steering:
    """The matrix for directions (L, D) or (M, L, D), or for whatever else steers."""
    if isinstance(directions, Tensor):
        return Steering(directions, coefficients_BL)
    return directions.steering(coefficients_BL)


class Steering:
    """What a running steering context adds, by layer; rows can leave while it runs."""

    _gates: tuple[str, ...] = ()
    _taken: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
    """By layer, shares (B, 1, K) and unit directions (K, D) of what is ablated."""
    _probe: Looks | None = None

    def __init__(self, directions_LD: Tensor, coefficients_BL: Tensor) -> None:
        """`directions_LD` with `coefficients_BL`, or of M vectors (M, L, D) with (B, L, M)."""
        directions_MLD = directions_LD if directions_LD.ndim == 3 else directions_LD[None]
        coefficients_BLM = coefficients_BL if directions_LD.ndim == 3 else coefficients_BL[..., None]
        if coefficients_BLM.ndim != 3 or coefficients_BLM.shape[1:] != directions_MLD.shape[:2][::-1]:
            raise ValueError(
                f"directions {tuple(directions_LD.shape)} and coefficients {tuple(coefficients_BL.shape)} "
                "must be (L, D) and (B, L), or (M, L, D) and (B, L, M)"
            )
        if not torch.isfinite(coefficients_BL).all():
            raise SettingsError("A coefficient is not a finite number: choose another alpha.")
        directions_MLD = directions_MLD.float()
        coefficients_BLM = coefficients_BLM.to(directions_MLD.device).float()
        steered = coefficients_BLM.ne(0).any(dim=2).any(dim=0).nonzero().flatten().tolist()
        # Products and a sum over M, no matrix product: a row's result must not depend on the other rows.
        self._added_B1D: dict[int, Tensor] = {
            layer: (coefficients_BLM[:, layer, :, None] * directions_MLD[:, layer]).sum(dim=1, keepdim=True)
            for layer in steered
        }

    def ablating(self, directions_KLD: Tensor, shares_BLK: Tensor) -> Self:
        """The same, with these shares of what the residual has along these directions taken away too."""
        made, units_KLD = copy(self), functional.normalize(directions_KLD.float(), dim=-1)
        steered = shares_BLK.ne(0).any(dim=2).any(dim=0).nonzero().flatten().tolist()
        made._taken = {layer: (shares_BLK[:, None, layer].float(), units_KLD[:, layer]) for layer in steered}
        return made

    def probed(self, probe: Looks | None) -> Self:
        """The same, with `probe` shown the residuals."""
        made = copy(self)
        made._probe = probe
        return made

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers where any row is steered, or looked at."""
        return tuple(sorted({*self._added_B1D, *self._taken, *(self._probe.layers if self._probe else ())}))

    def gated(self, gates: Sequence[str]) -> Self:
        """The same with a gate for each row, which counts from `at` on."""
        made = copy(self)
        made._gates = () if all(gate == EVERYWHERE for gate in gates) else tuple(gates)
        return made

    def at(self, place: int) -> Self:
        """What is added at this place of the answers, from 0: this itself where no row has a gate."""
        shares = [steered_share(gate, place) for gate in self._gates]
        return self if all(share == 1.0 for share in shares) else self.times(torch.tensor(shares)[:, None])

    def times(self, shares_BT: Tensor) -> Self:
        """A share of what is added, for each row and position; T is 1 where all positions get the same."""
        return self._each(lambda rows: rows * shares_BT[..., None].to(rows))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` of what each row gets."""
        made = copy(self)
        made._added_B1D = {layer: change(added) for layer, added in self._added_B1D.items()}
        made._taken = {layer: (change(taken), units) for layer, (taken, units) in self._taken.items()}
        return made

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (indices or a mask), in this order."""
        self._keep_gates(rows)
        kept = self._each(lambda of_rows: of_rows[rows.to(of_rows.device)])
        self._added_B1D, self._taken = kept._added_B1D, kept._taken

    def _keep_gates(self, rows: Tensor) -> None:
        if self._gates:
            self._gates = tuple(self._gates[row] for row in torch.arange(len(self._gates))[rows.cpu()])

    def hook(self, layer: int) -> Any:
        """A forward hook for block `layer`; its output may be a tensor or a tuple led by one."""

        def add(_block: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (self.plus(layer, output[0]), *output[1:])
            return self.plus(layer, output)

        return add

    def of(self, rows: slice | list[int]) -> Steering:
        """The same for these rows only."""
        return self._each(lambda of_rows: of_rows[rows])

    def plus(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        """The residual behind block `layer` with what is added there; itself where nothing is."""
        made_BTD = self._with_added(layer, hidden_BTD)
        if layer in self._taken:
            # Of the residual as it comes: the order of a mix's terms says nothing.
            shares_B1K, units_KD = (part.to(hidden_BTD) for part in self._taken[layer])
            made_BTD = made_BTD - (hidden_BTD @ units_KD.T * shares_B1K) @ units_KD
        if self._probe is not None:
            self._probe.look(layer, made_BTD)
        return made_BTD

    def _with_added(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        if layer not in self._added_B1D:
            return hidden_BTD
        added = self._added_B1D[layer]
        if added.dtype != hidden_BTD.dtype or added.device != hidden_BTD.device:
            added = self._added_B1D[layer] = added.to(hidden_BTD)
        return hidden_BTD + added

    @contextmanager
    def attached(self, blocks: Sequence[nn.Module]) -> Iterator[Steering]:
        """Hooks on the steered blocks while the context lasts, and none after it, however it is left."""
        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.callback(blocks[layer].register_forward_hook(self.hook(layer)).remove)
            yield self


@contextmanager
def steer(
    blocks: Sequence[nn.Module],
    directions_LD: Tensor | Operator,
    coefficients_BL: Tensor,
    shares_BT: Tensor | None = None,
) -> Iterator[Steering]:
    """Add C[b, l] * v[l] to the output of block l, at every position, while the context lasts.

    `directions_LD`: one direction a layer, or (M, L, D) of M vectors. `coefficients_BL`: a row for each row
    of the batch (one row serves any batch); layers whose column is zero get no hook. `shares_BT`: the share
    of it that each position gets; all of it when none. The model is exactly as before on leaving, however it
    is left. Source: activation addition (Turner et al., 2023, arXiv:2308.10248).
    """
    if isinstance(directions_LD, Tensor) and len(blocks) != directions_LD.shape[-2]:
        raise ValueError(f"{directions_LD.shape[-2]} directions for {len(blocks)} blocks")
    steering = steering_of(directions_LD, coefficients_BL)
    if shares_BT is not None:
        steering = steering.times(shares_BT)
    with steering.attached(blocks):
        yield steering
