"""From a name to where the model's files are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import try_to_load_from_cache

from ..config import DEFAULT_MODEL, GEMMA, SettingsError

DEMO = Path(__file__).parent / "demo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: the bundled demo, a local folder, or a hub id (then `path` is None)."""

    name: str
    kind: Literal["demo", "folder", "hub"]
    path: Path | None = None

    @property
    def location(self) -> str:
        return self.name if self.path is None else str(self.path)


def in_cache(name: str) -> bool:
    """Whether the hub model is on this machine, weights and all."""
    return all(
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("config.json", "tokenizer_config.json")
    ) and any(
        isinstance(try_to_load_from_cache(name, file), str)
        for file in ("model.safetensors", "model.safetensors.index.json")
    )


def default_model() -> tuple[str, str]:
    """What to run when nothing is asked for, and one line on why it is not Gemma ("" when it is)."""
    if in_cache(GEMMA):
        return GEMMA, ""
    return DEFAULT_MODEL, (
        f"{GEMMA} is not on this machine, so the small bundled model runs. For Gemma: accept its licence at "
        f"huggingface.co/{GEMMA}, run `hf auth login`, then `hf download {GEMMA}` (about 2 GB)."
    )


def find(name: str) -> Source:
    """The source of `demo`, of a folder holding config.json, or of a hub id `owner/name`.

    Errors: `SettingsError` when the name is none of the three, or the folder holds no model.
    """
    if name == DEFAULT_MODEL:
        if not (DEMO / "config.json").is_file():
            raise SettingsError("The bundled model has not been built: run `make demo-model`.")
        return Source(name, "demo", DEMO)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return Source(name, "folder", folder.resolve())
    if folder.is_dir():
        raise SettingsError(f"The folder {name!r} holds no config.json: give the folder of a saved model.")
    if _HUB_ID.fullmatch(name):
        return Source(name, "hub")
    raise SettingsError(
        f"Unknown model {name!r}: give {DEFAULT_MODEL!r}, a saved model's folder, or a hub id like {GEMMA}."
    )
