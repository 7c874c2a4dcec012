"""What every format shares: directions by layer number, checked, as a vector of all layers and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingsError
from ..vector import SteeringVector

MAX_LAYERS = 1024
"""No model is deeper: a larger number in a name is not a layer."""
UNIT = 1e-4
"""How far from 1 the length of a direction may be that counts as a unit."""
_NUMBER = re.compile(r"\d+")


def numbered(path: Path, names: Iterable[str]) -> dict[int, str]:
    """The one number in each name -> the name: `7`, `layer7.v`, `layers.7`. Errors: `SettingsError`."""
    found: dict[int, str] = {}
    for name in names:
        numbers = _NUMBER.findall(name)
        if len(numbers) != 1:
            raise SettingsError(
                f"{path}: the name {name!r} holds no layer number: name each tensor like 'layer7'."
            )
        if int(numbers[0]) in found:
            raise SettingsError(f"{path}: the layer {numbers[0]} stands there twice.")
        found[int(numbers[0])] = name
    return found


def assemble(
    path: Path,
    by_layer: Mapping[int, Tensor],
    meta: Mapping[str, str],
    *,
    n_layers: int | None = None,
    norms: Mapping[int, float] | None = None,
    residual_norms: Mapping[int, float] | None = None,
) -> SteeringVector:
    """A vector of all layers from those a file holds; layers it lacks get a zero direction.

    `n_layers`: the model's depth; the last layer in the file when neither is given nor stands in `meta`.
    Norms that no file states are the directions' own lengths, and 0 for the residual. Errors:
    `SettingsError` for shapes that differ, numbers that are not finite, or layers beyond the depth.
    """
    if not by_layer:
        raise SettingsError(f"{path} holds no direction: give a file with one tensor a layer.")
    widths = {tuple(tensor.shape) for tensor in by_layer.values()}
    if len(widths) > 1 or len(next(iter(widths))) != 1 or 0 in next(iter(widths)):
        shapes = ", ".join(str(list(shape)) for shape in sorted(widths)[:3])
        raise SettingsError(f"{path}: every layer needs one row of numbers of the same width, not {shapes}.")
    if not all(tensor.is_floating_point() for tensor in by_layer.values()):
        raise SettingsError(f"{path}: the directions must be floating-point numbers.")
    rows = {layer: tensor.float() for layer, tensor in by_layer.items()}
    for layer, row in rows.items():
        if not torch.isfinite(row).all():
            raise SettingsError(f"{path}: the direction of layer {layer} is not finite: extract it again.")
    if all(not row.any() for row in rows.values()):
        raise SettingsError(f"{path}: every direction is zero: extract the vector again.")
    stated = meta.get("n_layers", "")
    depth = n_layers or (int(stated) if stated.isdigit() else 0) or max(rows) + 1
    if max(rows) >= min(depth, MAX_LAYERS):
        raise SettingsError(f"{path} steers layer {max(rows)}, but the model has layers 0-{depth - 1}.")
    directions_LD = torch.zeros(depth, next(iter(widths))[0])
    norms_L, residual_norms_L = torch.zeros(depth), torch.zeros(depth)
    for layer, row in rows.items():
        directions_LD[layer] = row
        norms_L[layer] = (norms or {}).get(layer, float(row.norm()))
        residual_norms_L[layer] = (residual_norms or {}).get(layer, 0.0)
    lengths = directions_LD.norm(dim=-1)
    units = bool(((lengths - 1).abs() < UNIT)[list(rows)].all())
    kept = {**meta, "n_layers": str(depth), "layers": ",".join(map(str, sorted(rows)))}
    kept["normalized"] = "yes" if units else "no"
    return SteeringVector(directions_LD, norms_L, residual_norms_L, kept)


def chosen(vector: SteeringVector, layers: Iterable[int] | None) -> dict[int, Tensor]:
    """The directions to write, by layer, zero ones left out. Errors: `SettingsError`."""
    wanted = range(vector.n_layers) if layers is None else sorted(set(layers))
    outside = [layer for layer in wanted if not 0 <= layer < vector.n_layers]
    if outside:
        raise SettingsError(f"The vector has layers 0-{vector.n_layers - 1}, not {outside[0]}.")
    found = {layer: vector.directions_LD[layer] for layer in wanted if vector.directions_LD[layer].any()}
    if not found:
        raise SettingsError("The vector has no direction in these layers: choose others.")
    return found
