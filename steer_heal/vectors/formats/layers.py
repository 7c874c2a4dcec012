"""What every format shares: directions by layer number, checked, as a vector of all layers and back."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from steer_heal.config import SettingsError
from steer_heal.vectors.vector import SteeringVector

MAX_LAYERS = 1024
"""No model is deeper: a larger number in a name is not a layer."""
UNIT = 1e-4
"""How far from 1 the length of a direction may be that counts as a unit."""
INTEGER = r"(0|-?[1-9][0-9]{0,3})"
"""A layer's number, in the formats where a layer has one name."""
_NUMBER = re.compile(r"([A-Za-z]?)([-\u2212]?)([0-9]{1,9})")


def numbered(path: Path, names: Iterable[str]) -> dict[int, str]:
    """The one number in each name -> the name: `7`, `layer7.v`, `layers.7`; from the end `-1`, `layer.-1`.

    Errors: `SettingsError`; also for `layer-7`, which may mean either, unless a `layer-0` shows that its
    hyphen is none of the number's.
    """
    found: dict[int, str] = {}
    parts = {name: _NUMBER.findall(name) for name in names}
    numbers = [number for one in parts.values() for number in one]
    hyphened = any(letter and minus and int(digits) == 0 for letter, minus, digits in numbers)
    for name, numbers in parts.items():
        if len(numbers) != 1:
            raise SettingsError(
                f"{path}: the name {name[:60]!r} holds no layer number: name each tensor like 'layer7'."
            )
        letter, minus, digits = numbers[0]
        if letter and minus and not hyphened:
            raise SettingsError(
                f"{path}: {name[:60]!r} may be layer {digits} or count from the end: name it 'layer{digits}' "
                f"or 'layer.-{digits}'."
            )
        layer = -int(digits) if minus and not letter else int(digits)
        if layer in found:
            raise SettingsError(f"{path}: the layer {layer} stands there twice.")
        found[layer] = name
    return found


def _from_the_start(path: Path, numbers: Iterable[int], model: int, stated: int) -> dict[int, int]:
    """Each layer's number in the file -> counted from the start: below 0 it counts from the end, as Python.

    `model`, `stated`: how many layers the model has, and the file says it has; 0 where that is not known.
    Errors: `SettingsError` for both ways of counting in one file, a depth that is not known, or beyond it.
    """
    found, depth = sorted(numbers), model or stated
    if found[0] >= 0:
        return {number: number for number in found}
    if found[-1] >= 0:
        raise SettingsError(f"{path} counts layers from the start and from the end: count them one way.")
    if not depth or (stated and stated != depth):
        of = f" of {stated}, but the model has {model}" if stated else ", and does not say of how many"
        raise SettingsError(f"{path} counts layers from the end{of}: number them from the start.")
    if found[0] < -depth:
        raise SettingsError(f"{path} steers layer {found[0]}, but the model has layers -{depth} to -1.")
    return {number: depth + number for number in found}


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

    Layers below 0 count from the end. `n_layers`: the model's depth; the last layer in the file when neither
    is given nor stands in `meta`. Norms that no file states are the directions' own lengths, and 0 for the
    residual. Errors: `SettingsError` for shapes that differ, numbers that are not finite, or layers beyond
    the depth.
    """
    if not by_layer:
        raise SettingsError(f"{path} holds no direction: give a file with one tensor a layer.")
    widths = {tuple(tensor.shape) for tensor in by_layer.values()}
    if len(widths) > 1 or len(next(iter(widths))) != 1 or 0 in next(iter(widths)):
        shapes = ", ".join(str(list(shape)) for shape in sorted(widths)[:3])
        raise SettingsError(f"{path}: every layer needs one row of numbers of the same width, not {shapes}.")
    if not all(tensor.is_floating_point() for tensor in by_layer.values()):
        raise SettingsError(f"{path}: the directions must be floating-point numbers.")
    said = re.fullmatch("[0-9]{1,4}", meta.get("n_layers", ""))
    stated = int(said[0]) if said and int(said[0]) <= MAX_LAYERS else 0
    place = _from_the_start(path, by_layer, n_layers or 0, stated)
    rows = {place[number]: tensor.float() for number, tensor in by_layer.items()}
    for layer, row in rows.items():
        if not torch.isfinite(row).all():
            raise SettingsError(f"{path}: the direction of layer {layer} is not finite: extract it again.")
    if all(not row.any() for row in rows.values()):
        raise SettingsError(f"{path}: every direction is zero: extract the vector again.")
    depth = n_layers or stated or max(rows) + 1
    if max(rows) >= min(depth, MAX_LAYERS):
        raise SettingsError(f"{path} steers layer {max(rows)}, but the model has layers 0-{depth - 1}.")
    directions_LD = torch.zeros(depth, next(iter(widths))[0])
    norms_L, residual_norms_L = torch.zeros(depth), torch.zeros(depth)
    for number, layer in place.items():
        directions_LD[layer] = rows[layer]
        norms_L[layer] = (norms or {}).get(number, float(rows[layer].norm()))
        residual_norms_L[layer] = (residual_norms or {}).get(number, 0.0)
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
