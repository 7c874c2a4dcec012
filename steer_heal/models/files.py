"""A model's files on this machine: whether they fit into memory, and whether they are all there."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open

from steer_heal.config import SettingsError, first_line
from steer_heal.sources import ORIGIN

SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]
"""What is downloaded besides the weights; never pickled weights."""
WEIGHTS = "model.safetensors"
CONFIGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", f"{WEIGHTS}.index.json",
)  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json")
SPARE = 0.1
"""Share of the weights that loading needs on top of them."""
GIB = 2**30
_POINTER = b"version https://git-lfs"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.\d+\.")
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def download(name: str, progress: Callable[[str], None] | None = None) -> Path:
    """The hub model's folder in the local cache, downloaded first where files are missing, with progress on
    stderr and in words to `progress`; of the weights, what transformers reads. A download that breaks off
    goes on from there. Errors: the hub client's own, and `ValueError` as of `weight_files`."""
    folder = Path(snapshot_download(name, allow_patterns=SMALL, tqdm_class=tqdm))
    weights = [str(file.relative_to(folder)) for file in weight_files(folder)]
    bars = tqdm if progress is None else _telling(progress)
    return Path(snapshot_download(name, allow_patterns=weights, tqdm_class=bars))


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


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from, whatever else lies beside them: what config.json
    names, else `WEIGHTS`, else what the index lists. Errors: `ValueError` for an index without a list."""
    wanted = _object(folder / "config.json").get("transformers_weights", WEIGHTS)
    index = f"{WEIGHTS}.index.json"
    if wanted == WEIGHTS and not (folder / WEIGHTS).is_file() and (folder / index).is_file():
        wanted = index
    if not wanted.endswith(".json"):
        return [folder / wanted]
    listed = _object(folder / wanted).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"its {wanted} lists no weights: save or download it again")
    return sorted({folder / str(file) for file in listed.values()})


def check_files(folder: Path) -> None:
    """Errors: `ValueError`, a clause about one of the folder's files, for what transformers would take in
    silence, wait for without end, or stumble over without saying where."""
    for file in folder.iterdir():
        if file.exists() and not file.is_file() and not file.is_dir():
            raise ValueError(f"its {file.name} is no file but a pipe or a device: remove it")
    for file in CONFIGS:
        _object(folder / file)
    weights = weight_files(folder)
    again = (
        f"delete {folder}, and it is made anew the next time"
        if (folder / ORIGIN).is_file()
        else "download it again"
    )
    for file in (*weights, *(folder / tokenizer for tokenizer in TOKENIZERS)):
        if file in weights and not (file.is_file() and file.suffix == ".safetensors"):
            raise ValueError(f"it lacks {file.name}, and pickled weights are not read: {again}")
        beginning = _beginning(file) if file.is_file() else b"{"
        if beginning.startswith(_POINTER):
            raise ValueError(f"its {file.name} is a pointer of git-lfs: run `git lfs pull` in its folder")
        if file.suffix == ".json" and not beginning.lstrip().startswith(b"{"):
            raise ValueError(f"its {file.name} holds no JSON object: save or download it again")
        if file in weights:
            try:
                safe_open(file, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"its {file.name} is damaged ({first_line(error)}): {again}") from error
    if (folder / "adapter_config.json").is_file():
        raise ValueError("it also holds an adapter: move adapter_config.json and its weights elsewhere")


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(len(_POINTER))


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in the file, an empty one where there is none. Errors: `ValueError`."""
    if not file.is_file():
        return {}
    ours = file.name == "generation_config.json"  # which transformers need not be able to read
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig" if ours else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {file.name} is no JSON in UTF-8: save it again ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"its {file.name} holds no JSON object: save or download it again")
    return found


def needed(folder: Path, dtype: torch.dtype | str) -> int:
    """Bytes of the weights once loaded in `dtype` ("auto": as they are stored)."""
    total = 0
    for file in weight_files(folder):
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


def check_memory(
    name: str, folder: Path, device: str, dtype: torch.dtype | str, *, described: int = 0
) -> None:
    """Errors: `SettingsError`, before anything is loaded, when the weights do not fit, or the model of that
    many bytes that its configuration describes, for which transformers makes room whatever the files hold."""
    wanted, room = int(max(needed(folder, dtype), described) * (1 + SPARE)), free(device)
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


def check_whole(name: str, found: Mapping[str, Any]) -> str:
    """What no file holds, or in another shape, transformers fills with random numbers: refused. `found`: what
    its loading tells. Gives a sentence on what of the blocks is in the files and not in the model, or ""."""
    if missing := found["missing_keys"]:
        raise SettingsError(
            f"{name} lacks {len(missing)} of its tensors, {min(missing)} among them: its files are incomplete"
            ", or of another kind; save or download it again."
        )
    if wrong := sorted(found["mismatched_keys"]):
        key, stored, expected = wrong[0]
        raise SettingsError(
            f"{name} has weights of other shapes than its config.json says ({key}: {tuple(stored)} instead "
            f"of {tuple(expected)}): one of the two is another model's; save or download it again."
        )
    unused = sorted(key for key in found["unexpected_keys"] if _BLOCK.search(key))
    if not unused:
        return ""
    return (
        f"{len(unused)} tensors of its blocks, {unused[0]} among them, have no place in the model that its "
        "config.json describes, and are left out."
    )
