"""llama.cpp's control vectors, which repeng writes too: tensors `direction.<n>` in float32.

`direction.<n>` is added to the output of block n, as ours is; llama.cpp refuses any other tensor, and one for
block 0. Source: `common_control_vector_load` and `llama_adapter_cvec` in llama.cpp, `export_gguf` in repeng.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from torch import Tensor

from steer_heal.config import SettingsError
from steer_heal.vectors.formats.layers import INTEGER, assemble, chosen
from steer_heal.vectors.vector import SteeringVector

ARCHITECTURE = "controlvector"
_META = "steer_heal."


def read(path: Path, n_layers: int | None) -> SteeringVector:
    """The vector of a control-vector file. Errors: `SettingsError`."""
    file = _Reader(path)
    strings = {name: _value(field) for name, field in file.fields.items()}
    if strings.get("general.architecture") != ARCHITECTURE:
        found = strings.get("general.architecture") or "nothing we know"
        raise SettingsError(f"{path} is a GGUF file of {found}, not a control vector: give a control vector.")
    by_layer: dict[int, Tensor] = {}
    for tensor in file.tensors:
        number = re.fullmatch(rf"direction\.{INTEGER}", tensor.name)
        if number is None or tensor.tensor_type not in _FLOATS:
            raise SettingsError(f"{path}: {tensor.name[:60]!r} is no direction in float32 or float16.")
        by_layer[int(number[1])] = torch.from_numpy(tensor.data.astype(np.float32))
    meta = {key.removeprefix(_META): value for key, value in strings.items() if key.startswith(_META)}
    if "model" not in meta and strings.get(f"{ARCHITECTURE}.model_hint"):
        meta["model"] = str(strings[f"{ARCHITECTURE}.model_hint"])
    return assemble(path, by_layer, {"method": "gguf", **meta}, n_layers=n_layers)


class _Reader(GGUFReader):
    """Ends where the file does: gguf's own reads an array that says it is longer for ever."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        found = super()._get(offset, dtype, count, override_order)
        if len(found) < int(count):
            raise ValueError("it ends too early")
        return found


_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


def write(vector: SteeringVector, path: Path, *, layers: Iterable[int] | None) -> None:
    """Save for llama.cpp and repeng, block 0 left out. Errors: `SettingsError` when nothing else is left."""
    rows = {layer: row for layer, row in chosen(vector, layers).items() if layer > 0}
    if not rows:
        raise SettingsError("llama.cpp cannot steer layer 0, the only one here: choose other layers.")
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", vector.meta.get("model", "unknown"))
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(rows))
    for key, value in {**vector.meta, "n_layers": str(vector.n_layers)}.items():
        writer.add_string(f"{_META}{key}", value)
    for layer, row in rows.items():
        writer.add_tensor(f"direction.{layer}", row.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _value(field: Any) -> str:
    """A string field's text; other kinds hold nothing that is read here."""
    if field.types[:1] != [GGUFValueType.STRING]:
        return ""
    return bytes(field.parts[field.data[0]]).decode("utf-8", errors="replace")
