"""Which format a file is, and reading and writing each."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steer_heal.config import MAX_UPLOAD_BYTES, SettingsError
from steer_heal.config import VECTOR_FORMATS as FORMATS
from steer_heal.vectors import vector as native
from steer_heal.vectors.formats import gguf_file, steering_lite
from steer_heal.vectors.formats.layers import assemble, chosen, numbered
from steer_heal.vectors.vector import SteeringVector

_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}


def read(path: str | Path, *, n_layers: int | None = None) -> SteeringVector:
    """The vector in a file of any format of `FORMATS`; which one is seen from the file.

    `n_layers`: depth of the model it is for (formats that do not state it hold no more than the layers they
    steer). Nothing is ever unpickled. Errors: `SettingsError`, one sentence each.
    """
    path = Path(path).expanduser()
    _refuse_pickles(path)
    if path.is_dir():
        raise SettingsError(f"{path} is a folder: give one file (.safetensors, .gguf or .npz).")
    if not path.is_file():
        raise SettingsError(f"There is no vector file {path}.")
    _check_size(path, path.stat().st_size)
    if path.suffix.lower() not in _READERS:
        raise SettingsError(f"{path}: give a vector as .safetensors, .gguf or .npz.")
    what, reader = _READERS[path.suffix.lower()]
    try:
        return reader(path, n_layers)
    except SettingsError:
        raise
    except Exception as error:  # whatever the parsers make of a file that is damaged
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise SettingsError(f"{path} is not a readable {what}: {why}.") from error


def write(
    vector: SteeringVector,
    path: str | Path,
    *,
    format: str | None = None,
    layers: Iterable[int] | None = None,
    coefficient: float | None = None,
) -> Path:
    """Save the vector; the format follows from the ending when none is named (.safetensors: our own).

    `layers`: only these (our own format always holds all). `coefficient`: c*, kept where the format has a
    place for it. Errors: `SettingsError`.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower()
    name = format or next((name for name, ending in FORMATS.items() if ending == suffix), None)
    if name not in FORMATS:
        raise SettingsError(f"Unknown vector format {name or path.suffix!r}: give {', '.join(FORMATS)}.")
    if suffix != FORMATS[name]:
        raise SettingsError(f"The format {name} needs a name that ends in {FORMATS[name]}, not {path.name}.")
    layers = None if layers is None else list(layers)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
            draft = Path(folder) / path.name
            _write(name, vector, draft, layers, coefficient)
            draft.chmod(0o644)
            draft.replace(path)
    except (OSError, SafetensorError, UnicodeError) as error:
        raise SettingsError(f"The vector cannot be saved as {path}: {error}.") from error
    return path


def check(vector: SteeringVector, n_layers: int, width: int, name: str) -> None:
    """Errors: `SettingsError` when the vector does not fit a model of that shape."""
    shape = tuple(vector.directions_LD.shape)
    if shape != (n_layers, width):
        raise SettingsError(
            f"The vector is for a model of {shape[0]} layers of width {shape[1]}, but {name} has "
            f"{n_layers} of width {width}: extract one from it."
        )


def origin(vector: SteeringVector, name: str) -> str:
    """A sentence where the vector says that it was made on another model than `name`; else nothing."""
    made_on = vector.meta.get("model", "")
    if not made_on or _last_part(made_on) == _last_part(name):
        return ""
    return (
        f"This vector was made on {made_on[:80]}, not on {name}: a direction of one model means nothing in "
        "another, so read what it does here before you use it."
    )


def _last_part(model: str) -> str:
    """What names a model wherever it lies: without its owner or folder."""
    return model.rstrip("/").rpartition("/")[2].lower()


def _write(
    name: str, vector: SteeringVector, path: Path, layers: list[int] | None, coefficient: float | None
) -> None:
    if name == "steer-heal":
        native.save(vector, path)
    elif name == "steering-lite":
        steering_lite.write(vector, path, layers=layers, coefficient=coefficient)
    elif name == "gguf":
        gguf_file.write(vector, path, layers=layers)
    elif name == "npz":
        arrays: dict[str, Any] = {f"layer{n}": row.numpy() for n, row in chosen(vector, layers).items()}
        with open(path, "wb") as file:  # by name, numpy would add its own ending to `.NPZ`
            np.savez(file, **arrays)
    else:
        rows = {f"layer{n}": row.contiguous().clone() for n, row in chosen(vector, layers).items()}
        save_file(rows, path, metadata={**vector.meta, "n_layers": str(vector.n_layers)})


def _read_safetensors(path: Path, n_layers: int | None) -> SteeringVector:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") == native.FORMAT:
        return native.load(path)
    if "cfg" in metadata:
        return steering_lite.read(path, tensors, metadata, n_layers)
    names = numbered(path, tensors)
    meta = {"method": "tensors", **metadata}
    return assemble(path, {layer: tensors[name] for layer, name in names.items()}, meta, n_layers=n_layers)


def _read_npz(path: Path, n_layers: int | None) -> SteeringVector:
    with zipfile.ZipFile(path) as packed:
        _check_size(path, sum(entry.file_size for entry in packed.infolist()))
    with np.load(path, allow_pickle=False) as file:
        names = numbered(path, file.files)
        arrays = {layer: np.asarray(file[name]) for layer, name in names.items()}
    if any(array.dtype.kind != "f" for array in arrays.values()):
        raise SettingsError(f"{path}: every array must hold floating-point numbers.")
    rows = {layer: torch.from_numpy(array.astype(np.float32)) for layer, array in arrays.items()}
    return assemble(path, rows, {"method": "npz"}, n_layers=n_layers)


_READERS = {
    ".gguf": ("GGUF file", gguf_file.read),
    ".npz": (".npz file of plain numbers", _read_npz),
    ".safetensors": ("safetensors file", _read_safetensors),
}


def _check_size(path: Path, n_bytes: int) -> None:
    if n_bytes > MAX_UPLOAD_BYTES:
        most = MAX_UPLOAD_BYTES // 10**6
        raise SettingsError(f"{path} holds {n_bytes / 1e6:.0f} MB: a vector file has at most {most} MB.")


def _refuse_pickles(path: Path) -> None:
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    pickled = next((file for file in inside if file.suffix.lower() in _PICKLES), None)
    if pickled:
        raise SettingsError(
            f"{pickled} is a pickle, which can run code when it is opened: save the tensors with "
            "safetensors.torch.save_file({'layer7': tensor, ...}, 'vector.safetensors') and give that file."
        )
