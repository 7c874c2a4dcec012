"""steering-lite's safetensors: tensors `layer<n>.v`, and its config as JSON under `cfg` in the metadata.

Source of the layout: `Vector.save` and `SteeringConfig.to_dict` of wassname/steering-lite (75d0cff).
It reads `cfg` only, so what we know beyond it (norms, personas, depth) rides in a second metadata entry.
"""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from steer_heal.config import SettingsError
from steer_heal.vectors.formats.layers import INTEGER, assemble, chosen
from steer_heal.vectors.vector import SteeringVector

OURS = "steer_heal"
ADDITIVE = {"mean_diff": "v", "pca": "v"}
"""Methods that add a multiple of one direction at every position, and where it is kept."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_THEIRS = ("steering_lite", "tensor_dtype", "layers", "normalized")
_DEFAULTS: dict[str, Any] = {
    "layers": None,
    "target": "residual",
    "target_submodule": None,
    "coeff": 1.0,
    "dtype": "bfloat16",
    "seed": 0,
}
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "mean_diff": {"normalize": True, "subtract_corpus_mean": False},
    "pca": {"n_components": 1, "normalize": True},
}


def read(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], n_layers: int | None
) -> SteeringVector:
    """The vector of a steering-lite file. Errors: `SettingsError` when its method is not additive."""
    config, extra = json.loads(metadata["cfg"]), json.loads(metadata.get(OURS, "{}"))
    method = config["method"]
    if method not in ADDITIVE or config.get("target_submodule"):
        raise SettingsError(
            f"{path} holds steering-lite's method {method!r}, which does not add one direction a layer: "
            "only mean_diff and pca vectors can be read; install steering-lite to use the others."
        )
    by_layer: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        number = re.fullmatch(rf"layer{INTEGER}\.{ADDITIVE[method]}", name)
        if number is None:
            raise SettingsError(
                f"{path}: {name[:60]!r} is no direction of the method {method!r}: save it with one component."
            )
        by_layer[int(number[1])] = tensor
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in by_layer.values()}
    if min(by_layer, default=0) < 0:
        config["layers"] = None  # saved again, its tensors are numbered from the start
    meta = {
        **{
            key: str(value).encode("utf-8", "replace").decode()
            for key, value in extra.get("meta", {}).items()
        },
        "method": method,
        "steering_lite": json.dumps(config),
        "tensor_dtype": dtypes.pop() if len(dtypes) == 1 else "float32",
    }
    return assemble(
        path,
        by_layer,
        meta,
        n_layers=n_layers,
        norms=_numbers(extra.get("norms")),
        residual_norms=_numbers(extra.get("residual_norms")),
    )


def write(
    vector: SteeringVector, path: Path, *, layers: Iterable[int] | None, coefficient: float | None
) -> None:
    """Save for steering-lite; a vector that came from there keeps its config, tensor type and bits."""
    rows = chosen(vector, layers)
    config = _config(vector, layers, coefficient)
    dtype = _DTYPES.get(vector.meta.get("tensor_dtype", ""), torch.float32)
    if not all(torch.equal(row.to(dtype).float(), row) for row in rows.values()):
        dtype = torch.float32
    meta = {key: value for key, value in vector.meta.items() if key not in _THEIRS}
    ours = {
        "meta": {**meta, "n_layers": str(vector.n_layers)},
        "norms": {str(layer): float(vector.norms_L[layer]) for layer in rows},
        "residual_norms": {str(layer): float(vector.residual_norms_L[layer]) for layer in rows},
    }
    save_file(
        {f"layer{layer}.v": row.to(dtype).contiguous().clone() for layer, row in rows.items()},
        path,
        metadata={"cfg": json.dumps(config), OURS: json.dumps(ours)},
    )


def _config(
    vector: SteeringVector, layers: Iterable[int] | None, coefficient: float | None
) -> dict[str, Any]:
    """The config to save: the file's own where the vector came from one, else that of our method."""
    kept = _json(vector.meta.get("steering_lite", ""))
    if isinstance(kept, dict) and str(kept.get("method")) in ADDITIVE:
        config = kept
    else:
        method = "pca" if vector.meta.get("method") == "pca" else "mean_diff"
        config = {"method": method, **_DEFAULTS, **_OWN_DEFAULTS[method]}
        config["normalize"] = vector.meta.get("normalized", "yes") == "yes"
        config["dtype"] = "float32"
        config["layers"] = sorted(chosen(vector, None))
    if layers is not None:
        config["layers"] = sorted(chosen(vector, layers))
    if coefficient is not None:
        config["coeff"] = coefficient
    return config


def _json(text: str) -> Any:
    """What the text says, or None: another tool may have put anything under a name of ours."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _numbers(values: Any) -> dict[int, float]:
    found = {int(layer): float(value) for layer, value in (values or {}).items()}
    if not all(map(math.isfinite, found.values())):
        raise ValueError("a length is not finite")
    return found
