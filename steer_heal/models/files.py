"""A model's files on this machine: whether they fit into memory, and whether they are all there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import tqdm
from safetensors import safe_open

from ..config import SettingsError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"]
"""What is downloaded: never pickled weights."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json")
SPARE = 0.1
"""Share of the weights that loading needs on top of them."""
GIB = 2**30
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def download(name: str, progress: Callable[[str], None] | None = None) -> Path:
    """The hub model's folder in the local cache, downloaded first where files are missing, with progress on
    stderr and in words to `progress`. A download that breaks off goes on from there. Errors: the hub
    client's own."""
    bars = tqdm if progress is None else _telling(progress)
    return Path(snapshot_download(name, allow_patterns=PATTERNS, tqdm_class=bars))


def _telling(progress: Callable[[str], None]) -> type[tqdm]:
    """A progress bar that also tells how many bytes have come, whether or not it is drawn."""

    class Telling(tqdm):
        def __init__(self, *args: Any, unit: str = "it", **kwargs: Any) -> None:
            super().__init__(*args, unit=unit, **kwargs)
            self._counts_bytes, self._bytes = unit == "B", float(kwargs.get("initial", 0))

        def update(self, n: float | None = 1) -> Any:
            self._bytes += n or 0
            if self._counts_bytes and self.total:
                progress(f"downloading, {self._bytes / 1e9:.2f} of {self.total / 1e9:.2f} GB")
            return super().update(n)

    return Telling


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


def check_tokenizer(name: str, folder: Path | str, own: Iterable[str]) -> None:
    """Where no file holds a tokenizer, transformers may make up an empty one: refused."""
    if not any((Path(folder) / file).is_file() for file in (*TOKENIZERS, *own)):
        raise SettingsError(no_tokenizer(name))


def no_tokenizer(name: str) -> str:
    return f"{name} has no tokenizer that transformers can read: save its tokenizer into the same folder."


def check_whole(name: str, missing: Collection[str]) -> None:
    """What no file holds, transformers fills with random numbers and a warning: refused."""
    if missing:
        raise SettingsError(
            f"{name} lacks {len(missing)} of its tensors, {min(missing)} among them: its files are incomplete"
            ", or of another kind; save or download it again."
        )
