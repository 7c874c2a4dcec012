"""Opens runs.duckdb for a moment, and only when it is ours: lock, patience, migrations."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from steer_heal.config import SettingsError
from steer_heal.records import StoreBusy
from steer_heal.runs.store.schema import MIGRATIONS, RECORD

PATIENCE_S = 3.0
_PAUSE_S = 0.05
_HOLDER = re.compile(r"held in (?P<program>.+?) \(PID (?P<pid>\d+)\)")
_LOCKS: dict[Path, threading.RLock] = {}
_LOCKS_GUARD = threading.Lock()


class StoreUnreadable(SettingsError):
    """A DuckDB file that this DuckDB cannot read: damaged, or of another version. It is only an index."""


_REBUILD = "`python -m steer_heal store rebuild` makes it anew from the runs' logs"
_LIBRARY = slice(52, 84)


def _head(path: Path) -> bytes:
    """The file's first bytes, none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_LIBRARY.stop)
    except OSError:
        return b""


def written_by(path: Path) -> str | None:
    """The version of DuckDB that last wrote the file, from its own header; None when it is no DuckDB file."""
    head = _head(path)
    if head[8:12] != b"DUCK":
        return None
    return head[_LIBRARY].rstrip(b"\0").decode("ascii", "replace").removeprefix("v") or "an unknown version"


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All of what is done within, or nothing of it."""
    connection.begin()
    try:
        yield
        connection.commit()
    except Exception:
        with suppress(duckdb.TransactionException):  # a commit that failed has ended it already
            connection.rollback()
        raise


class Database:
    """One DuckDB file, closed between operations so that a notebook or a second page can use it too.

    DuckDB lets one process write or many read; within this process one operation runs at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._ready = False
        self._signed = False
        with _LOCKS_GUARD:
            self._lock = _LOCKS.setdefault(self.path, threading.RLock())

    @contextmanager
    def open(
        self, *, write: bool = False, patience: float = PATIENCE_S
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the migrated file. Raises: `StoreBusy`, or `SettingsError` for a file not ours."""
        with self._lock:
            deadline = time.monotonic() + patience
            if not self._ready or not self.path.exists():
                self._prepare(deadline)
            connection = self._connect(read_only=not write, deadline=deadline)
            try:
                if write and not self._signed:
                    self._sign(connection)
                yield connection
            except duckdb.Error as error:
                if (refusal := self._trouble(str(error))) is None:
                    raise
                raise refusal from error
            finally:
                connection.close()

    def _prepare(self, deadline: float) -> None:
        """Creates or migrates. A file that is not ours is only ever opened for reading.

        One of another program is not even opened: DuckDB would look for an extension that reads it.
        """
        if self.path.exists():
            if not self.path.is_file():
                raise SettingsError(f"{self.path} is no file: name another one with --db.")
            if (head := _head(self.path)) and head[8:12] != b"DUCK":
                raise self._not_ours()
            connection = self._connect(read_only=True, deadline=deadline)
            try:
                version = self._version(connection)
            finally:
                connection.close()
            if version == len(MIGRATIONS):
                self._ready = True
                return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(
                f"Cannot make the folder {self.path.parent} ({error.strerror}): name another file with --db."
            ) from error
        connection = self._connect(read_only=False, deadline=deadline)
        try:
            self._migrate(connection)
        finally:
            connection.close()
        self._ready = True

    def _version(self, connection: duckdb.DuckDBPyConnection) -> int:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT table_name FROM duckdb_tables() WHERE NOT internal"
            ).fetchall()
        ]
        if "steer_heal_schema" not in tables:
            if tables:
                raise SettingsError(
                    f"{self.path} is a DuckDB file of something else: name another one with --db. "
                    "It was not changed."
                )
            return 0
        row = connection.execute("SELECT coalesce(max(version), 0) FROM steer_heal_schema").fetchone()
        version = int(row[0]) if row else 0
        if version > len(MIGRATIONS):
            raise SettingsError(
                f"{self.path} was made by a newer version of this program (schema {version}, known here "
                f"{len(MIGRATIONS)}): update the program or name another file with --db. It was not changed."
            )
        return version

    def _sign(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Notes in the file that this version of DuckDB has written to it."""
        connection.execute(
            "INSERT INTO steer_heal_schema SELECT ?, ?, ? WHERE NOT EXISTS "
            "(FROM steer_heal_schema WHERE duckdb_version = ?)",
            [len(MIGRATIONS), time.time(), duckdb.__version__, duckdb.__version__],
        )
        self._signed = True

    def _migrate(self, connection: duckdb.DuckDBPyConnection) -> None:
        for version in range(self._version(connection), len(MIGRATIONS)):
            with transaction(connection):
                connection.execute(RECORD)
                connection.execute(MIGRATIONS[version])
                connection.execute(
                    "INSERT INTO steer_heal_schema VALUES (?, ?, ?)",
                    [version + 1, time.time(), duckdb.__version__],
                )

    def _connect(self, *, read_only: bool, deadline: float) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                return duckdb.connect(str(self.path), read_only=read_only)
            except duckdb.Error as error:
                refusal = self._explain(str(error))
                if not isinstance(refusal, StoreBusy) or time.monotonic() >= deadline:
                    raise refusal from error
            time.sleep(_PAUSE_S)

    def _not_ours(self) -> SettingsError:
        return SettingsError(
            f"{self.path} is not a DuckDB file: name another one with --db. It was not changed."
        )

    def _explain(self, text: str) -> StoreBusy | SettingsError:
        if holder := _HOLDER.search(text):
            program = Path(holder["program"]).name
            return StoreBusy(
                f"{self.path.name} is held by {program} (process {holder['pid']}): close it there."
            )
        if "Could not set lock" in text or "different configuration" in text:
            return StoreBusy(f"{self.path.name} is held by another program: close it there.")
        if "not a valid DuckDB" in text:
            return self._not_ours()
        if trouble := self._trouble(text):
            return trouble
        return SettingsError(
            f"Cannot open {self.path} ({text.splitlines()[0]}): name another file with --db."
        )

    def _trouble(self, text: str) -> StoreBusy | SettingsError | None:
        """What a person can do about an error of the file or the disk; None for any other error."""
        if "No space left" in text or "out of space" in text:
            return StoreBusy(f"There is no room left for {self.path.name}: free some on its disk.")
        if "version number" in text:
            return StoreUnreadable(
                f"{self.path} was written by DuckDB {written_by(self.path)}, and this is "
                f"{duckdb.__version__}: install that one; {_REBUILD}. It was not changed."
            )
        if "Corrupt" in text or "Could not read" in text or "checksum" in text or "WAL" in text:
            return StoreUnreadable(f"{self.path} is damaged: {_REBUILD}. It was not changed.")
        return None
