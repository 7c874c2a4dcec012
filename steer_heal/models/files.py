"""A hub model's files on this machine, and whether they fit into memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open

from ..config import SettingsError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"]
"""What is downloaded: never pickled weights."""
SPARE = 0.1
"""Share of the weights that loading needs on top of them."""
GIB = 2**30
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def download(name: str) -> Path:
    """The hub model's folder in the local cache, downloaded first where files are missing, with progress on
    stderr. A download that breaks off goes on from there. Errors: the hub client's own."""
    return Path(snapshot_download(name, allow_patterns=PATTERNS))


def needed(folder: Path, dtype: torch.dtype | str) -> int:
    """Bytes of the weights once loaded in `dtype` ("auto": as they are stored)."""
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        stored = file.stat().st_size
        if isinstance(dtype, torch.dtype):
            with safe_open(file, framework="pt") as opened:
                name = next(iter(opened.keys()), None)
                width = _WIDTHS.get(opened.get_slice(name).get_dtype(), 1) if name else dtype.itemsize
            stored = stored * dtype.itemsize // width
        total += stored
    return total


def free(device: str) -> int:
    """Bytes free where the model goes; on every accelerator together for "auto"."""
    if device == "auto" and torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0]
    return psutil.virtual_memory().available


def check_memory(name: str, folder: Path, device: str, dtype: torch.dtype | str) -> None:
    """Errors: `SettingsError`, before anything is loaded, when the weights do not fit."""
    wanted, room = int(needed(folder, dtype) * (1 + SPARE)), free(device)
    if wanted > room:
        raise SettingsError(
            f"{name} needs about {wanted / GIB:.1f} GiB of memory on {device} and {room / GIB:.1f} GiB are "
            "free: close other programs, or choose a smaller model."
        )
