"""Traits of a person's own: a readable file each in the user's folder, listed beside ours.

A file is an entry of `traits.json` in which `description`, `target`, `replies` and `scenes` may be left out.
Without `replies` a vector is made from the two personas; without `target` the trait is measured on its own
axis: by how likely the model is to say its `statements`, pairs of what the two poles would say.
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steer_heal.config import SettingsError
from steer_heal.whole_file import write_whole

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
MAX_OWN = 200
MAX_POLE_CHARS = 480
"""So that both fit into a title."""
_WHOLE = 4
"""Words from which on a pole is a persona as it stands, and not an adjective or a noun."""
_LABEL = 32
"""Characters that a pole has as a name."""


def folder() -> Path:
    """Where they are kept: STEER_HEAL_HOME, else the platform's folder for a user's data."""
    if named := os.environ.get("STEER_HEAL_HOME"):
        return Path(named).expanduser().absolute() / "traits"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "steer-heal" / "traits"
    usual = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_DATA_HOME")
    return (Path(usual) if usual else Path.home() / ".local" / "share") / "steer-heal" / "traits"


def files() -> dict[str, Path]:
    """The file of each, by name."""
    found = sorted(folder().glob("*.json"))
    return {file.stem: file for file in found if _NAME.fullmatch(file.stem)}


def of_poles(name: str, plus: str, minus: str, **more: Any) -> dict[str, Any]:
    """The entry of a trait between two poles, each a word or two ("blunt") or a persona ("You are a judge who
    ..."). `more`: other fields of an entry. Errors: `SettingsError` for poles or a name that will not do."""
    plus, minus = plus.strip(), minus.strip()
    check(name, plus, minus)
    if (longest := max(len(plus), len(minus))) > MAX_POLE_CHARS:
        raise SettingsError(f"A pole has {longest:,} characters: give at most {MAX_POLE_CHARS}.")
    short = all(len(pole.split()) < _WHOLE for pole in (plus, minus))
    title = f"{_bare(plus)} over {_bare(minus)}" if short else name.replace("_", " ")
    return {
        "name": name, "title": title[:1].upper() + title[1:], "description": f"From {minus} to {plus}",
        "positive": _persona(plus), "negative": _persona(minus), **more,
    }  # fmt: skip


def with_replies(
    row: dict[str, Any], replies: Sequence[tuple[str, str]], scenes: Sequence[str]
) -> dict[str, Any]:
    """The entry with these paired replies and the scenes that they answer, of which either may be left out:
    no draft any more where they are not its own already. What was said to other scenes is left out."""
    said = {"replies": [list(pair) for pair in replies], "scenes": list(scenes)}
    given = {key: some for key, some in said.items() if some}
    if all(row.get(key) == some for key, some in given.items()):
        return row
    return {key: row[key] for key in row if key not in ("replies", "replies_drafted")} | given


def check(name: str, plus: str, minus: str) -> None:
    """Errors: `SettingsError` for a trait's name or its poles that will not do."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name!r} will not do as a trait's name: use up to 40 of a-z, 0-9, - and _, and begin with a "
            "letter or a digit."
        )
    for pole in (plus, minus):
        if not pole.strip():
            raise SettingsError("A pole is empty: give both, a word such as blunt or a whole persona.")
    if _bare(plus).casefold() == _bare(minus).casefold():
        raise SettingsError(f"Both poles are {plus!r}: give two that differ.")


def _persona(pole: str) -> str:
    return pole if len(pole.split()) >= _WHOLE else f"You are {_bare(pole)}."


def _bare(persona: str) -> str:
    return re.sub(r"^you are\s+", "", persona.strip().rstrip("."), flags=re.I)


def names(positive: str, negative: str) -> tuple[str, str]:
    """What the two poles are called in tables: their first words; plus and minus where those are the same."""
    said = (" ".join(_bare(text).casefold().split()) for text in (positive, negative))
    plus, minus = (text if len(text) <= _LABEL else f"{text[: _LABEL - 4].rstrip()} ..." for text in said)
    return (plus, minus) if plus != minus else ("plus", "minus")


def name_of(plus: str, minus: str) -> str:
    """A name for the trait between two poles."""
    words = re.findall(r"[a-z0-9]+", f"{plus} over {minus}".lower())
    return "-".join(words)[:40].strip("-") or "trait"


def check_new(name: str) -> None:
    """Errors: `SettingsError` where there is one of that name, or too many."""
    if len(files()) >= MAX_OWN:
        raise SettingsError(f"There are {MAX_OWN} traits of your own: delete one first.")
    if name in files():
        raise SettingsError(f"There is a trait {name!r}: choose another name, or delete it first.")


def write(row: dict[str, Any]) -> Path:
    """The entry as the trait's file, whole or not at all. Errors: `SettingsError` where the folder cannot be
    written."""
    file = folder() / f"{row['name']}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(row, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"{file} cannot be written ({error.strerror}): set STEER_HEAL_HOME.") from error
    return file


def delete(name: str) -> None:
    """Errors: `SettingsError` where it is no trait of the user's own."""
    if name not in files():
        raise SettingsError(f"There is no trait {name!r} of your own: `trait list` says which there are.")
    files()[name].unlink()
