"""What was measured before and need not be again: files in the cache folder, else those that ship."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from steer_heal.config import SettingsError
from steer_heal.data import FOLDER
from steer_heal.whole_file import write_whole

T = TypeVar("T")


def find(folder: str | Path, name: str) -> Path:
    """The file of that name, a hash of all that decides it: in the cache folder, or, where that has none,
    among those that ship (`make measured`)."""
    kept, shipped = Path(folder) / name, FOLDER / "measured" / name
    return shipped if shipped.is_file() and not kept.exists() else kept


def read(folder: str | Path | None, name: str, key: str, kind: type[T]) -> T | None:
    """What the JSON file holds under the key, a record of that kind again. None where there is none, or it is
    damaged: measure again."""
    try:
        if folder is None:
            return None
        document = json.loads(find(folder, name).read_text(encoding="utf-8"))
        return TypeAdapter(kind).validate_python(document[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: str | Path | None, name: str, document: Mapping[str, Any]) -> None:
    """The document as JSON, whole or not at all; nothing where there is no folder.

    Errors: `SettingsError` for a folder that cannot be written.
    """
    if folder is None:
        return
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(document))
    except OSError as error:
        raise SettingsError(f"What was measured cannot be kept in {folder}: {error.strerror}.") from error
