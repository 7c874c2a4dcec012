"""A store's file as a whole: who wrote it, a consistent copy of it, another put in its place."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from steer_heal.config import SettingsError
from steer_heal.runs.store.database import PATIENCE_S, Database, StoreUnreadable
from steer_heal.runs.store.schema import MIGRATIONS


@dataclass(frozen=True, slots=True)
class About:
    """What a store says of itself: schema, the DuckDB versions that wrote it (the newest last), rows."""

    path: Path
    bytes: int
    schema: int
    written_by: tuple[str, ...]
    rows: dict[str, int]


def about(path: str | Path, *, patience: float = PATIENCE_S) -> About:
    """Raises: `SettingsError` when there is no such file or it is not ours, `StoreBusy`."""
    path = Path(path)
    if not path.exists():
        raise SettingsError(f"There is no {path} yet: it is made by the first run or by `store rebuild`.")
    with Database(path).open(patience=patience) as connection:
        written = connection.execute("SELECT duckdb_version FROM steer_heal_schema ORDER BY applied_at")
        versions = tuple(dict.fromkeys(row[0] for row in written.fetchall()))
        rows = dict(
            connection.execute(
                "SELECT table_name, estimated_size FROM duckdb_tables() WHERE NOT internal ORDER BY ALL"
            ).fetchall()
        )
    return About(path, path.stat().st_size, len(MIGRATIONS), versions, rows)


def snapshot(path: str | Path, target: str | Path, *, patience: float = PATIENCE_S) -> Path:
    """A copy as of one moment, made while others go on: nobody can write while this reads.

    Raises: `SettingsError` (nothing to copy, or `target` is there already or cannot be written), `StoreBusy`.
    """
    path, target = Path(path), Path(target)
    if not path.exists():
        raise SettingsError(f"There is no {path} to copy.")
    if target.exists():
        raise SettingsError(f"{target} is there already: name a new file.")
    with _draft(target) as draft:
        with Database(path).open(patience=patience):
            shutil.copyfile(path, draft)
            if _journal(path).exists():
                shutil.copyfile(_journal(path), _journal(draft))
        duckdb.connect(str(draft)).close()  # takes the copied journal in
    return target


def replace(path: str | Path, draft: Path, *, patience: float = PATIENCE_S) -> None:
    """Puts a finished store in the place of the one at `path`, which is left as `*.unreadable` when it cannot
    be opened. Raises: `SettingsError` for a file that is not ours, `StoreBusy` when it is held."""
    path = Path(path)
    if not path.exists():
        draft.replace(path)
        return
    try:
        with Database(path).open(write=True, patience=patience) as connection:
            connection.execute("CHECKPOINT")
            draft.replace(path)
    except StoreUnreadable:
        path.replace(path.with_name(f"{path.name}.unreadable"))
        _journal(path).unlink(missing_ok=True)
        draft.replace(path)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(target)
    except OSError as error:
        raise SettingsError(f"Cannot write {target} ({error.strerror}): name another file.") from error
    finally:
        draft.unlink(missing_ok=True)
        _journal(draft).unlink(missing_ok=True)
