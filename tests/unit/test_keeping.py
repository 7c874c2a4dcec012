"""The store as a file: rebuilt, copied while in use, signed by DuckDB; damaged, foreign, held by others."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import pytest

from steer_heal.cli import main
from steer_heal.config import SettingsError
from steer_heal.runs import events
from steer_heal.runs.store import Store, StoreBusy, StoreUnreadable, keeping
from steer_heal.runs.store.database import written_by
from tests.runs import write_run
from tests.unit.test_store import tables


@pytest.fixture
def place(tmp_path):
    """A folder with runs/r10, runs/r20 and a store that has taken them in."""
    store = Store(tmp_path / "runs.duckdb", patience=0.2)
    for name in ("r10", "r20"):
        log = write_run(tmp_path / "runs" / name / "events.jsonl", name=name)
        store.ingest(name, events.read(log))
    return tmp_path


def command(place: Path, *words: str) -> int:
    return main(["store", *words, "--db", str(place / "runs.duckdb"), "--runs", str(place / "runs")])


def rows(path: Path) -> dict[str, list]:
    found = tables(Store(path))
    return {name: [row for row in values if "example" not in row] for name, values in found.items()}


def test_a_rebuilt_store_has_the_same_rows(place, capsys):
    before = rows(place / "runs.duckdb")
    assert command(place, "rebuild", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"] == 3
    assert rows(place / "runs.duckdb") == before
    assert sorted(path.name for path in place.iterdir()) == ["runs", "runs.duckdb"]


def test_a_store_in_use_is_not_replaced_and_nothing_is_left_behind(place, capsys):
    before = (place / "runs.duckdb").read_bytes()
    with hold(place / "runs.duckdb", read_only=True) as holder:
        assert command(place, "rebuild") == 2
    assert f"process {holder.pid}" in capsys.readouterr().err
    assert (place / "runs.duckdb").read_bytes() == before
    assert sorted(path.name for path in place.iterdir()) == ["runs", "runs.duckdb"]


@pytest.mark.parametrize("offset", [12, 2000, 12_400])
def test_a_damaged_store_says_so_and_is_rebuilt(place, offset):
    path = place / "runs.duckdb"
    before = rows(path)
    whole = bytearray(path.read_bytes())
    whole[offset : offset + 4] = b"\xc8\xc8\xc8\xc8"
    path.write_bytes(whole)
    with pytest.raises(StoreUnreadable, match=r"damaged.*store rebuild"):
        Store(path).runs()
    assert path.read_bytes() == bytes(whole)
    assert command(place, "rebuild") == 0
    assert rows(path) == before
    assert (place / "runs.duckdb.unreadable").read_bytes() == bytes(whole)


def test_a_store_of_another_duckdb_names_both_versions(place, monkeypatch):
    path = place / "runs.duckdb"
    whole = bytearray(path.read_bytes())
    whole[52:58] = b"v9.8.7"
    path.write_bytes(whole)

    def refuse(*_: object, **__: object) -> None:
        raise duckdb.IOException("Trying to read a database file with version number 99, but we can only ...")

    monkeypatch.setattr("steer_heal.runs.store.database.duckdb.connect", refuse)
    with pytest.raises(StoreUnreadable, match=rf"DuckDB 9\.8\.7, and this is {duckdb.__version__}.*rebuild"):
        Store(path).runs()


def test_a_file_of_something_else_is_never_replaced(place, capsys):
    for content in (b"not a database", b""):
        (place / "runs.duckdb").write_bytes(content)
        assert command(place, "rebuild") == 2
        assert (place / "runs.duckdb").read_bytes() == content
    assert "--db" in capsys.readouterr().err


def test_a_snapshot_beside_a_reader_equals_the_store(place):
    copy = place / "copies" / "a.duckdb"
    with hold(place / "runs.duckdb", read_only=True):
        assert command(place, "snapshot", "--out", str(copy)) == 0
    assert tables(Store(copy)) == tables(Store(place / "runs.duckdb"))
    assert [path.name for path in copy.parent.iterdir()] == ["a.duckdb"]
    with pytest.raises(SettingsError, match="there already"):
        keeping.snapshot(place / "runs.duckdb", copy)


def test_a_snapshot_has_what_is_only_in_the_journal(place):
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]);"
        "c.execute(\"UPDATE runs SET name = 'from the journal'\"); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(place / "runs.duckdb")], check=False)
    assert (place / "runs.duckdb.wal").exists()
    keeping.snapshot(place / "runs.duckdb", place / "copy.duckdb")
    assert {row.name for row in Store(place / "copy.duckdb").runs()} == {"from the journal"}


def test_all_tables_are_written_out(place):
    assert command(place, "export", "--out", str(place / "out")) == 0
    count = duckdb.sql("SELECT count(*) FROM read_parquet($p)", params={"p": str(place / "out/runs.parquet")})
    assert count.fetchone() == (2,)


def test_the_file_says_which_duckdb_wrote_it(place, monkeypatch):
    path = place / "runs.duckdb"
    assert written_by(path) == duckdb.__version__
    assert keeping.about(path).written_by == (duckdb.__version__,)
    monkeypatch.setattr("steer_heal.runs.store.database.duckdb.__version__", "9.9.9")
    for _ in range(2):
        Store(path).ingest("r10", events.Chunk((), 0))
    assert keeping.about(path).written_by[-1] == "9.9.9"
    assert len(keeping.about(path).written_by) == 2


@pytest.mark.parametrize(
    "words", [("info",), ("snapshot",), ("export", "--out", "x"), ("snapshot", "--out", "x"), ("rebuild",)]
)
def test_what_cannot_be_done_is_a_sentence(tmp_path, words, capsys):
    assert command(tmp_path, *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


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


def test_a_missing_folder_is_made(tmp_path):
    assert Store(tmp_path / "new" / "runs.duckdb").runs() == []
    assert (tmp_path / "new" / "runs.duckdb").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--db"):
        Store(tmp_path / "file" / "runs.duckdb").runs()
