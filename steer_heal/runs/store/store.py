"""What is asked of runs.duckdb: ingest, queries that give records, export."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from steer_heal.config import COLUMNS, SettingsError
from steer_heal.evaluate.text_health import loops
from steer_heal.records import Agreement, CompletionRow, ControlNode, MapNode, RoundDetail, RunRow
from steer_heal.runs.events import Chunk
from steer_heal.runs.store.database import PATIENCE_S, Database, transaction
from steer_heal.runs.store.rows import ROW_TABLES, TEXT, LogRows, new_run, rows_of

Rows = list[dict[str, Any]]

_MIX = "coalesce(r.settings ->> '$.mix', '')"
"""What a run heals instead of its trait's vector."""
_RUNS = """
SELECT run_id, name, model, trait, seed, preset, status, rounds, round, stage, progress, started_at,
       finished_at, retention, is_example, message, MIX AS mix
FROM runs r ORDER BY is_example, started_at DESC NULLS FIRST, run_id DESC
""".replace("MIX", _MIX)
_SEVEN = "{" + ", ".join(f"'{name}': p.{column}" for name, column in COLUMNS.items()) + "}"
_MAP = """
SELECT m.run_id, m.model, m.trait, m.seed, m.round, m.stage, m.alpha, m.care, m.social_norms, m.coherence,
       m.n_vignettes, m.finished_at, d.retention, r.is_example, r.vignette_set, m.agreement, m.frame,
       m.agreement_low, m.agreement_high, m.chance, m.relevance, m.text_verdict, m.answers_verdict,
       SEVEN AS profile, p.poles, MIX AS mix
FROM moral_map m JOIN runs r USING (run_id)
JOIN profiles p ON p.run_id = m.run_id AND p.round = m.round AND p.stage = m.stage
LEFT JOIN rounds d ON d.run_id = m.run_id AND d.round = m.round
WHERE (? IS NULL OR list_contains(?, m.run_id))
  AND (p.poles IS NOT NULL OR m.care IS NOT NULL AND m.social_norms IS NOT NULL)
ORDER BY r.started_at, m.run_id, m.round, m.finished_at
""".replace("SEVEN", _SEVEN).replace("MIX", _MIX)
_CONTROLS = (
    "SELECT run_id, kind, care, social_norms, SEVEN AS profile, poles FROM controls p "
    "WHERE list_contains(?, run_id) ORDER BY 1, 2, 3, 4, 6"
).replace("SEVEN", _SEVEN)
_PROFILES = """
SELECT * FROM profiles
WHERE run_id = ? AND (round = ? OR stage = 'base' OR (stage = 'steered' AND round = least(?, 1)))
ORDER BY finished_at
"""
_COMPLETIONS = """
SELECT run_id, round, idx AS index, coalesce(alpha, 0) AS alpha, coalesce(prompt, '') AS prompt,
       coalesce(text, '') AS text, coalesce(kept, false) AS kept, scores, coalesce(reasons, []) AS reasons
FROM completions WHERE run_id = ? AND round = ? ORDER BY idx
"""
_ANSWERS = """
SELECT a.prompt, b.text AS base, a.steered,
       CASE WHEN a.round > 0 THEN a.text END AS healed, b.word AS base_word, a.steered_word,
       a.word AS healed_word
FROM answers a LEFT JOIN answers b ON b.run_id = a.run_id AND b.round = 0 AND b.idx = a.idx
WHERE a.run_id = ? AND a.round = ? ORDER BY a.idx
"""
_STEPS = (
    "SELECT step, total, loss, nll, divergence, lr, barrier, distil, held_out_nll FROM steps "
    "WHERE run_id = ? AND round = ? ORDER BY step"
)
_TIMES = """
WITH like_it AS (
    SELECT other.run_id FROM runs other JOIN runs r ON r.run_id = ? AND other.model = r.model
        AND (other.settings -> '$.data') = (r.settings -> '$.data')
        AND (other.settings -> '$.train') = (r.settings -> '$.train')
        AND (other.settings -> '$.evaluate') = (r.settings -> '$.evaluate')
        AND (coalesce(other.settings ->> '$.mix', '') = '') = (MIX = '')
    WHERE other.status = 'finished' AND NOT other.is_example
    ORDER BY other.finished_at DESC LIMIT 1
), happened AS (
    SELECT *, lead(kind) OVER after AS next, lead(time) OVER after - time AS seconds
    FROM events
    WHERE kind IN ('stage', 'round', 'paused', 'queued', 'resumed')
      AND (run_id = ? OR run_id IN (FROM like_it))
    WINDOW after AS (PARTITION BY run_id ORDER BY seq)
)
SELECT run_id = ? AS own, round, data ->> '$.stage' AS stage, time,
       CASE WHEN next IN ('stage', 'round') THEN seconds END AS seconds
FROM happened WHERE kind = 'stage'
ORDER BY own, seq
""".replace("MIX", _MIX)
_EXPORTS = ("runs", *ROW_TABLES, "moral_map", "controls", "sweep_cells")


class Store:
    """One runs.duckdb, opened for each call and closed after it.

    Every method raises `StoreBusy` when another process holds the file for longer than `patience` seconds,
    and `SettingsError` when the file is not ours or newer; the file is then as it was.
    """

    def __init__(self, path: str | Path, *, patience: float = PATIENCE_S) -> None:
        self.path = Path(path)
        self.patience = patience
        self._database = Database(path)

    def marks(self) -> dict[str, int]:
        """How many bytes of each run's log are in."""
        with self._database.open(patience=self.patience) as connection:
            return dict(connection.execute("SELECT run_id, log_bytes FROM runs").fetchall())

    def ingest(self, run_id: str, chunk: Chunk, *, is_example: bool = False) -> int:
        """Takes in the events it does not have yet, in one transaction; gives how many were new."""
        return self.ingest_all([(run_id, chunk, is_example)])

    def ingest_all(self, logs: Iterable[tuple[str, Chunk, bool]]) -> int:
        """The same for several runs at once (run id, events, is it an example): all of them or none."""
        with self._database.open(write=True, patience=self.patience) as connection, transaction(connection):
            taken = [_take(connection, *log) for log in logs]
            _write(connection, [state for state, _ in taken])
        return sum(new for _, new in taken)

    def runs(self) -> list[RunRow]:
        """All runs, the newest first, examples last; `status` is what the log says, not who lives."""
        return [RunRow(**row) for row in self._query(_RUNS)]

    def forget(self, run_id: str) -> None:
        """Takes a run out."""
        with self._database.open(write=True, patience=self.patience) as connection, transaction(connection):
            for name in (*ROW_TABLES, "events", "runs"):
                connection.execute(f"DELETE FROM {name} WHERE run_id = ?", [run_id])  # noqa: S608 - our own names

    def moral_map(self, run_ids: Iterable[str] | None = None) -> list[MapNode]:
        """The nodes of the given runs (of all when None), in the order they came."""
        wanted = None if run_ids is None else list(run_ids)
        return [MapNode(**_measured(row)) for row in self._query(_MAP, wanted, wanted)]

    def controls(self, run_ids: Iterable[str]) -> list[ControlNode]:
        """What random directions and the persona do to the base, of the runs that asked for them."""
        return [ControlNode(**_measured(row)) for row in self._query(_CONTROLS, list(run_ids))]

    def stage_times(self, run_id: str) -> Rows:
        """The stages that the run has begun (`own`), after those of the newest finished run of its model with
        the same answers, training and measurements: `round`, `stage`, `time`, and the `seconds` of each that
        went through without a break."""
        return self._query(_TIMES, run_id, run_id, run_id)

    def sweep_cells(self, sweep_id: str) -> Rows:
        """The rows of the view `sweep_cells` of one sweep; `varied` holds the value of each axis."""
        rows = self._query("FROM sweep_cells WHERE sweep_id = ? ORDER BY cell, run_id, round", sweep_id)
        return [{**row, "varied": _json(row["varied"])} for row in rows]

    def completions(self, run_id: str, round_: int) -> list[CompletionRow]:
        """What the round generated, kept or not."""
        rows = self._query(_COMPLETIONS, run_id, round_)
        return [
            CompletionRow(**{**row, "scores": _json(row["scores"]), "reasons": tuple(row["reasons"])})
            for row in rows
        ]

    def round_detail(self, run_id: str, round_: int) -> RoundDetail:
        """All of one round (0: base). Raises: `SettingsError` when there is no such run or round."""
        with self._database.open(patience=self.patience) as connection:
            runs = _dicts(connection.execute("SELECT settings FROM runs WHERE run_id = ?", [run_id]))
            profiles = _dicts(connection.execute(_PROFILES, [run_id, round_, round_]))
            rounds = _dicts(
                connection.execute("SELECT * FROM rounds WHERE run_id = ? AND round = ?", [run_id, round_])
            )
            answers = _dicts(connection.execute(_ANSWERS, [run_id, round_]))
            steps = _dicts(connection.execute(_STEPS, [run_id, round_]))
        if not runs:
            raise SettingsError(f"There is no run {run_id!r}: choose one from the table of runs.")
        if not rounds and not any(row["round"] == round_ for row in profiles):
            what = f"finished round {round_}" if round_ else "measured its base"
            raise SettingsError(f"Run {run_id} has not {what} yet: open it again when it has.")
        done = rounds[0] if rounds else {}
        return RoundDetail(
            run_id=run_id, round=round_,
            profiles={row["stage"]: _profile(row) for row in profiles},
            coherence={row["stage"]: row["coherence"] for row in profiles if row["coherence"] is not None},
            retention=done.get("retention"), kept=done.get("kept") or 0, made=done.get("made") or 0,
            c_star=done.get("c_star"), text=_health(profiles), settings=_json(runs[0]["settings"]),
            answers=tuple(
                {key: row[key] or "" for key in ("prompt", "base", "steered", "healed")} for row in answers
            ),
            words=tuple(
                {stage: _word(row[f"{stage}_word"], row[stage]) for stage in ("base", "steered", "healed")}
                for row in answers
            ),
            losses=tuple({key: value for key, value in row.items() if value is not None} for row in steps),
            facts=_json(done.get("facts")), worth={row["stage"]: _worth(row) for row in profiles},
            frame=next((row["frame"] for row in profiles if row["frame"]), ""),
        )  # fmt: skip

    def export(self, folder: str | Path, run_ids: Sequence[str], kind: str = "parquet") -> list[Path]:
        """Writes each table's rows of the runs into a folder, as Parquet or CSV; gives the files."""
        if kind not in ("parquet", "csv"):
            raise SettingsError(f"Cannot export {kind!r}: choose parquet or csv.")
        files = [Path(folder) / f"{name}.{kind}" for name in _EXPORTS]
        with self._database.open(patience=self.patience) as connection:
            for name, file in zip(_EXPORTS, files, strict=True):
                relation = connection.table(name)
                kept = relation.filter(
                    duckdb.FunctionExpression(
                        "list_contains",
                        duckdb.ConstantExpression(list(run_ids)),
                        duckdb.ColumnExpression("run_id"),
                    )
                )
                kept.write_parquet(str(file)) if kind == "parquet" else kept.write_csv(str(file))
        return files

    def _query(self, sql: str, *parameters: Any) -> Rows:
        with self._database.open(patience=self.patience) as connection:
            return _dicts(connection.execute(sql, list(parameters)))


def _take(
    connection: duckdb.DuckDBPyConnection, run_id: str, chunk: Chunk, is_example: bool
) -> tuple[LogRows, int]:
    """What the events make of the run as it is known, and how many of them are new."""
    rows = _dicts(connection.execute("SELECT * FROM runs WHERE run_id = ?", [run_id]))
    run = rows[0] if rows else new_run(run_id, is_example)
    run["settings"] = json.loads(run["settings"]) if isinstance(run["settings"], str) else run["settings"]
    seen = run["last_seq"]
    state = rows_of(run, chunk.events)
    state.run["log_bytes"] = max(chunk.offset, run["log_bytes"])
    return state, sum(event.seq > seen for event in chunk.events)


def _write(connection: duckdb.DuckDBPyConnection, states: Sequence[LogRows]) -> None:
    """A statement costs far more than its rows, so each table gets the rows of all runs at once."""
    for state in states:
        for name in ROW_TABLES if state.forget_after is not None else ():  # a resumed run writes it again
            sql = f"DELETE FROM {name} WHERE run_id = ? AND round > ?"  # noqa: S608 - our own names
            connection.execute(sql, [state.run["run_id"], state.forget_after])
    tables: dict[str, Rows] = {
        "events": [row for state in states for row in state.events],
        "runs": [state.run for state in states],
    }
    for name in ROW_TABLES:
        tables[name] = [row for state in states for row in state.tables[name].values()]
    types = _types(connection)
    for name, rows in tables.items():
        if rows:
            made = "SELECT unnest(from_json(?, ?), recursive := true)"
            insert = f"INSERT OR REPLACE INTO {name} BY NAME SELECT * FROM ({made})"  # noqa: S608 - the same
            connection.execute(insert, [json.dumps(rows, allow_nan=False), json.dumps([types[name]])])


def _types(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str | list[str]]]:
    """By table the type of each column, as `from_json` takes it: what does not fit it becomes NULL."""
    found: dict[str, dict[str, str | list[str]]] = {}
    columns = connection.execute("SELECT table_name, column_name, data_type FROM duckdb_columns()")
    for table, column, kind in columns.fetchall():
        found.setdefault(table, {})[column] = [kind[:-2]] if kind.endswith("[]") else kind
    return found


def _dicts(result: duckdb.DuckDBPyConnection) -> Rows:
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _json(text: str | None) -> dict[str, Any]:
    return json.loads(text) if text else {}


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the poles of its trait as its profile, where it has them."""
    poles = _json(row.pop("poles"))
    return row | ({"profile": poles} if poles else {})


def _profile(row: dict[str, Any]) -> dict[str, float]:
    seven = {name: row[column] for name, column in COLUMNS.items()}
    return _json(row["poles"]) or {name: value for name, value in seven.items() if value is not None}


def _worth(row: dict[str, Any]) -> Agreement:
    return Agreement(row["agreement"], row["agreement_low"], row["agreement_high"], row["chance"])


def _word(word: str | None, text: str | None) -> str:
    """Of a printed answer; of older runs, which have no words, it is only known whether it loops."""
    if not text:
        return ""
    return "loops" if loops(text) else word or ""


def _health(profiles: Rows) -> dict[str, float]:
    """The text's health of the round's last profile that has one."""
    for row in reversed(profiles):
        if found := {key: row[key] for key in TEXT if row[key] is not None}:
            return found
    return {}
