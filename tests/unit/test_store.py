"""The store: idempotent, rebuilt equal from logs, patient, copied in use, no foreign file touched; logs."""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from steer_heal.cli import main
from steer_heal.config import FOUNDATIONS, SettingsError, heal_settings
from steer_heal.records import Agreement
from steer_heal.runs import events
from steer_heal.runs.events import Chunk, EventLog
from steer_heal.runs.store import Store, StoreBusy, StoreUnreadable, keeping
from steer_heal.runs.store.database import written_by
from steer_heal.runs.store.rows import ROW_TABLES
from steer_heal.runs.store.schema import MIGRATIONS
from tests.runs import play_round, profile, start, write_run

TABLES = ("runs", "events", *ROW_TABLES, "moral_map", "controls", "sweep_cells")


def tables(store: Store) -> dict[str, list[Any]]:
    with duckdb.connect(str(store.path), read_only=True) as connection:
        return {name: sorted(map(repr, connection.table(name).fetchall())) for name in TABLES}


def test_a_file_has_the_same_tables_however_the_log_was_cut_and_however_often_it_is_taken_in(store, log):
    whole = events.read(log)
    for start_ in range(0, len(whole.events), 7):
        store.ingest("r1", Chunk(whole.events[start_ : start_ + 7], whole.offset))
    pieces = tables(store)
    store.path.unlink()
    assert store.ingest("r1", whole) == len(whole.events)
    assert tables(store) == pieces
    assert len(pieces["completions"]) == 6
    assert store.ingest("r1", whole) == 0
    assert tables(store) == pieces


def test_the_documented_view_has_its_columns_and_the_map_its_nodes(store, log):
    store.ingest("r1", events.read(log))
    with duckdb.connect(str(store.path), read_only=True) as connection:
        columns = [row[0] for row in connection.execute("DESCRIBE moral_map").fetchall()]
    assert columns == [
        "run_id", "model", "trait", "seed", "round", "stage", "alpha", "care", "social_norms", "coherence",
        "n_vignettes", "finished_at", "agreement", "frame", "agreement_low", "agreement_high", "chance",
        "relevance", "text_verdict", "answers_verdict",
    ]  # fmt: skip
    nodes = store.moral_map(["r1"])
    assert [(node.round, node.stage) for node in nodes] == [
        (0, "base"), (1, "steered"), (1, "healed"), (2, "steered"), (2, "healed")
    ]  # fmt: skip
    assert nodes[2].care == pytest.approx(0.33)
    assert nodes[2].social_norms == pytest.approx(0.54)
    assert nodes[2].retention == pytest.approx(0.81)
    assert nodes[0].retention is None
    assert store.moral_map(["other"]) == []
    assert store.moral_map() == nodes


def test_a_run_on_its_trait_s_own_axis_has_no_foundations_but_its_two_poles(store, tmp_path):
    def poles(formal: float) -> dict[str, float]:
        return {"formal": formal, "casual": 1.0 - formal}

    with EventLog(tmp_path / "own" / "events.jsonl") as log:
        settings = heal_settings(model="demo", rounds=1, trait="formal")
        log.append("started", None, {"settings": settings.model_dump(mode="json"), "pid": 1, "host": "here"})
        found = {**profile(0.5, 0.2), "coherence": None, "frame": "own:formal", "p": poles(0.5)}
        log.append("profile", 0, {"stage": "base", "alpha": 0.0, **found})
        held = {"base": poles(0.5), "random": [poles(0.4)], "persona": poles(0.9), "c_stars": [1.0]}
        log.append("controls", 1, held)
        log.append("profile", 1, {"stage": "healed", "alpha": 0.0, **found, "p": poles(0.75)})
    store.ingest("own", events.read(tmp_path / "own" / "events.jsonl"))
    base, healed = store.moral_map()
    assert (base.care, base.social_norms, base.profile) == (None, None, poles(0.5))
    assert healed.profile == poles(0.75)
    shown = {node.kind: (node.care, node.profile) for node in store.controls(["own"])}
    assert shown == {"random": (None, poles(0.4)), "persona": (None, poles(0.9))}
    assert store.round_detail("own", 0).profiles == {"base": poles(0.5)}


def test_round_detail_holds_base_steered_healed_and_what_was_said(store, log):
    store.ingest("r1", events.read(log))
    detail = store.round_detail("r1", 2)
    assert set(detail.profiles) == {"base", "steered", "healed"}
    assert set(detail.profiles["healed"]) == set(FOUNDATIONS)
    assert detail.answers[1] == {
        "prompt": "What would you do?",
        "base": "the base answer",
        "steered": "steered 1",
        "healed": "answer 2",
    }
    assert (detail.kept, detail.made, detail.c_star) == (2, 3, 16.0)
    assert [loss["step"] for loss in detail.losses] == [1, 2]
    assert detail.settings["seed"] == 7
    assert detail.text["perplexity"] == 1.5
    assert detail.facts["headline"]["word"] == "healed"
    assert detail.facts["differences"]["healed-steered"] == [0.1, 0.05, 0.15]
    assert {"barrier", "held_out_nll"} <= set(detail.losses[-1])
    assert store.round_detail("r1", 0).facts == {}
    with pytest.raises(SettingsError, match="not finished round 3 yet"):
        store.round_detail("r1", 3)
    with pytest.raises(SettingsError, match="no run"):
        store.round_detail("nope", 1)
    rows = store.completions("r1", 1)
    assert [row.kept for row in rows] == [False, True, True]
    assert rows[0].reasons == ("repeats itself",)
    assert rows[0].text == "<b>r1 0</b>"
    assert rows[0].scores == {"repetition": 0.1}


def test_a_resumed_run_forgets_the_round_it_writes_again(store, tmp_path):
    path = tmp_path / "r2" / "events.jsonl"
    whole = write_run(tmp_path / "whole" / "events.jsonl")
    with EventLog(path) as log:
        from_whole = events.read(whole).events[0].data
        log.append("started", None, from_whole)
        for event in events.read(whole).events[1:4]:
            log.append(event.kind, event.round, event.data)
        play_round(log, 1)
        log.append("completion", 2, {"index": 99, "text": "of the round that was cut"})
        play_round(log, 2, end=False)
        store.ingest("r", events.read(path))
        assert store.runs()[0].status == "running"
        log.append("resumed", None, {"round": 1})
        store.ingest("r", events.read(path))
        assert {node.round for node in store.moral_map()} == {0, 1}
        assert store.runs()[0].progress == 0.5
        play_round(log, 2)
        log.append("finished", None, {"reason": "all rounds done"})
    store.ingest("r", events.read(path))
    resumed = (store.completions("r", 2), [(n.round, n.stage, n.care) for n in store.moral_map()])
    store.path.unlink()
    store.ingest("r", events.read(whole))
    assert resumed == (store.completions("r", 2), [(n.round, n.stage, n.care) for n in store.moral_map()])


def test_a_run_of_a_mix_and_its_points_say_which(store, tmp_path):
    made = write_run(tmp_path / "events.jsonl", rounds=1, mix="0.8 care_over_authority @answer")
    store.ingest("r", events.read(made))
    assert {row.mix for row in (*store.runs(), *store.moral_map())} == {"0.8 care_over_authority @answer"}


def test_progress_rises_to_one_with_the_last_headline(store, tmp_path):
    seen = [0.0]
    with EventLog(tmp_path / "events.jsonl") as log:
        start(log, heal_settings(model="demo", rounds=2))
        for round_ in (1, 2):
            play_round(log, round_)
            store.ingest("r", events.read(log.path))
            seen.append(store.runs()[0].progress)
            assert store.runs()[0].message == f"round {round_} healed: retention <0.8>"
    assert seen == [0.0, 0.5, 1.0]


ODD = [
    {"kind": "completion", "data": {"index": 2**40, "text": "x"}},
    {
        "kind": "completion",
        "data": {"index": 1, "text": None, "scores": "no", "reasons": None, "alpha": "much"},
    },
    {
        "kind": "profile",
        "data": {"stage": "healed", "p": {"Care": "high"}, "per_vignette": [{"id": 1}, None]},
    },
    {"kind": "step", "data": {"step": "one"}},
    {"kind": "progress", "data": {"stage": "unheard of", "done": 3, "total": 0}},
    {"kind": "started", "data": {"settings": {"name": "n", "future": {"x": [1]}, "rounds": 2, "seed": 1}}},
    {"kind": "telepathy", "data": {"text": "nul \x00 and \udc80", "n": 1e400}},
    {"kind": "answers", "data": {"prompts": ["a"], "texts": [None]}},
]


def test_events_of_another_version_are_taken_in_as_far_as_they_go(store, tmp_path):
    path = tmp_path / "events.jsonl"
    lines = [json.dumps({"seq": seq, "time": 1.0, "round": 1, **event}) for seq, event in enumerate(ODD)]
    path.write_text("\n".join(lines) + "\n")
    assert store.ingest("odd", events.read(path)) == len(ODD)
    assert store.moral_map() == []
    (row,) = store.runs()
    assert (row.name, row.rounds) == ("n", 2)


def test_a_printed_answer_has_its_word_and_one_of_an_older_run_says_whether_it_loops(store, tmp_path):
    loop = "I'm not sure what to do. " * 4
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("answers", 0, {"prompts": ["a", "b"], "texts": ["Yes.", loop]})
        log.append("profile", 1, {"stage": "healed", "alpha": 0.0, **profile(0.4, 0.4)})
        more = {"steered": [loop, "No."], "words": ["damaged", "fine"], "steered_words": ["broken", "fine"]}
        log.append("answers", 1, {"prompts": ["a", "b"], "texts": ["Yes.", "No."], **more})
    store.ingest("r1", events.read(tmp_path / "events.jsonl"))
    assert store.round_detail("r1", 1).words == (
        {"base": "", "steered": "loops", "healed": "damaged"},
        {"base": "loops", "steered": "fine", "healed": "fine"},
    )


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_export_holds_the_asked_run_only(store, log, tmp_path, kind):
    store.ingest("r1", events.read(log))
    store.ingest("r2", events.read(log))
    out = tmp_path / "it's out"
    out.mkdir()
    files = store.export(out, ["r1"], kind)
    assert {file.stem for file in files} >= {"runs", "profiles", "moral_map"}
    found = duckdb.sql(
        "FROM read_csv($p)" if kind == "csv" else "FROM read_parquet($p)",
        params={"p": str(out / f"profiles.{kind}")},
    )
    assert {row[0] for row in found.fetchall()} == {"r1"}


WORTH = {"value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.14, "why": ""}


def test_what_a_profile_is_worth_is_kept_and_its_coherence_may_be_none(store, tmp_path):
    told = profile(0.5, 0.3) | {"coherence": None, "frame": "cloze", "agreement": WORTH, "order_tv": 0.2}
    told |= {"text": {"relevance": 0.7}, "text_verdict": "damaged", "answers_verdict": "kept"}
    with EventLog(tmp_path / "events.jsonl") as log:
        log.append("profile", 0, {"stage": "base", "alpha": 0.0, **told})
        log.append("profile", 1, {"stage": "steered", "alpha": 1.0, **profile(0.4, 0.4)})
    store.ingest("r1", events.read(tmp_path / "events.jsonl"))
    base, steered = store.moral_map()
    assert (base.coherence, base.frame, base.worth) == (None, "cloze", Agreement(0.6, 0.5, 0.7, 0.14))
    assert (base.relevance, base.text_verdict, base.answers_verdict) == (0.7, "damaged", "kept")
    assert (steered.frame, steered.worth, steered.text_verdict) == (None, Agreement(), None)
    detail = store.round_detail("r1", 1)
    assert (detail.frame, detail.worth["base"].value, detail.coherence) == ("cloze", 0.6, {"steered": 0.99})
    with duckdb.connect(str(store.path), read_only=True) as connection:
        found = connection.execute(
            "SELECT agreement, frame, order_tv FROM profiles ORDER BY round"
        ).fetchall()
    assert found == [(0.6, "cloze", 0.2), (None, None, None)]


def test_a_store_of_before_keeps_its_rows_and_gains_the_columns(store, log, monkeypatch):
    older = MIGRATIONS[: next(i for i, sql in enumerate(MIGRATIONS) if "agreement" in sql)]
    with monkeypatch.context() as before:
        before.setattr("steer_heal.runs.store.database.MIGRATIONS", older)
        store.ingest("r1", events.read(log))
    again = Store(store.path)
    again.ingest("r1", events.read(log))
    nodes = again.moral_map()
    assert len(nodes) == 5
    assert {node.agreement for node in nodes} == {node.text_verdict for node in nodes} == {None}
    assert nodes[2].care == pytest.approx(0.33)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "events.jsonl"


def write(path: Path, n: int) -> None:
    with EventLog(path) as log:
        for index in range(n):
            log.append("completion", 1, {"index": index, "text": f"né {index}\n\U0001f600"})


def test_a_log_not_there_is_empty_and_one_shorter_than_the_offset_is_read_from_its_start(path: Path) -> None:
    assert (events.read(path), events.last(path)) == (Chunk((), 0), None)
    write(path, 2)
    assert len(events.read(path, 10**6).events) == 2


def test_the_last_event_is_found_behind_a_line_longer_than_the_tail(path: Path) -> None:
    with EventLog(path) as log:
        log.append("profile", 1, {"text": "x" * 300_000})
        log.append("finished")
    assert getattr(events.last(path), "kind", None) == "finished"
    path.write_bytes(path.read_bytes()[:-3])
    assert getattr(events.last(path), "kind", None) == "profile"


def test_what_has_no_json_form_is_refused_and_the_log_unchanged(path: Path) -> None:
    with EventLog(path) as log:
        with pytest.raises(TypeError):
            log.append("step", 1, {"loss": object()})
        assert log.append("step").seq == 0


def test_a_full_disk_raises_leaves_no_half_line_and_writing_can_go_on(path: Path) -> None:
    write(path, 1)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with EventLog(path) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))
        try:
            with pytest.raises(OSError):
                log.append("completion", 1, {"text": "too long for what is left of the disk"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.stat().st_size == size
        assert log.append("completion").seq == 1
    assert len(events.read(path).events) == 2


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="Cannot write"):
        EventLog(tmp_path / "file" / "events.jsonl")


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
