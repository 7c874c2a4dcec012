"""The store's file: held by others, foreign, of another version, in a folder that cannot be made."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import pytest

from steer_heal.config import SettingsError
from steer_heal.runs import events
from steer_heal.runs.store import Store, StoreBusy, keeping


@contextmanager
def hold(path: Path, *, read_only: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that keeps the file open until its input ends, or here."""
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'True');"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(read_only)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


@pytest.fixture
def holder(tmp_path):
    with hold(tmp_path / "runs.duckdb", read_only=False) as process:
        yield process


def test_a_holder_is_named_and_nothing_is_lost(store, log, holder):
    chunk = events.read(log)
    with pytest.raises(StoreBusy, match=rf"runs.duckdb is held by .*{holder.pid}"):
        store.ingest("r1", chunk)
    with pytest.raises(StoreBusy):
        store.runs()
    holder.kill()
    holder.wait()
    assert store.ingest("r1", chunk) == len(chunk.events)


def test_it_waits_for_a_holder_that_lets_go(tmp_path, log, holder):
    store = Store(tmp_path / "runs.duckdb", patience=20)
    holder.stdin.close()
    assert store.ingest("r1", events.read(log)) > 0


def test_a_reader_beside_it_does_not_stop_reading(store, log):
    store.ingest("r1", events.read(log))
    with hold(store.path, read_only=True):
        assert len(store.runs()) == 1
        with pytest.raises(StoreBusy):
            store.ingest("r1", events.read(log))


def foreign_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE runs (mine INTEGER)")


def foreign_tables(path: Path) -> None:
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE runs (mine INTEGER)")


def newer(path: Path) -> None:
    Store(path).runs()
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO steer_heal_schema VALUES (999, 0, '9')")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("not a database\n" * 300), "is not a DuckDB file"),
        (lambda path: path.write_bytes(b""), ""),
        (foreign_sqlite, "is not a DuckDB file"),
        (foreign_tables, "a DuckDB file of something else"),
        (newer, "a newer version of this program"),
    ],
)
@pytest.mark.parametrize("name", ["other.duckdb", "other.sqlite", "other.csv"])
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_was(tmp_path, log, make, words, name):
    path = tmp_path / name
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(SettingsError, match=f"{words}.*--db"):
            Store(path).ingest("r1", events.read(log))
    with pytest.raises(SettingsError, match=f"{words}.*--db"):
        Store(path).runs()
    assert path.read_bytes() == before


def test_a_folder_or_a_pipe_given_as_the_store_is_refused_and_stays(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    fresh = Store(tmp_path / "fresh.duckdb")
    fresh.runs()
    for name in ("folder", "pipe"):
        with pytest.raises(SettingsError, match="is no file: name another one with --db"):
            Store(tmp_path / name).runs()
        with pytest.raises(SettingsError, match="is no file"):
            keeping.replace(tmp_path / name, fresh.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "fresh.duckdb", "pipe"]


def test_a_failed_migration_leaves_no_half_schema(tmp_path, monkeypatch, log):
    path = tmp_path / "runs.duckdb"
    with monkeypatch.context() as patch:
        patch.setattr(
            "steer_heal.runs.store.database.MIGRATIONS", ("CREATE TABLE a (i INTEGER); SELECT nonsense;",)
        )
        with pytest.raises(duckdb.Error):
            Store(path).runs()
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_tables()").fetchone() == (0,)
    assert Store(path).ingest("r1", events.read(log)) > 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--db"):
        Store(tmp_path / "file" / "runs.duckdb").runs()
