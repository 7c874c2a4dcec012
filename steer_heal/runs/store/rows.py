"""Events of one run -> the rows they mean. Pure: no file, no clock; equal events give equal rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from steer_heal.config import COLUMNS
from steer_heal.records import Event
from steer_heal.runs.events import FINAL, is_index

ROW_TABLES = ("rounds", "profiles", "vignette_scores", "completions", "answers", "steps")

STAGES = {
    "base": 0.0,
    "extract": 0.0,
    "calibrate": 0.05,
    "generate": 0.12,
    "filter": 0.40,
    "train": 0.42,
    "evaluate": 0.85,
}
"""Share of a round that is over when a stage begins; the share of the last one ends at 1."""

_STEP = ("loss", "nll", "divergence", "lr", "barrier", "distil", "held_out_nll")
_FACTS = (
    "headline", "retention_interval", "intervals", "differences", "shift_cosine", "as_far", "facts_kept",
    "neutral_kl", "path", "beside",
)  # fmt: skip
TEXT = (
    "perplexity",
    "perplexity_ratio",
    "repetition",
    "looping",
    "relevance",
    "relevance_ratio",
    "diversity",
)
"""What is stored of the health of a stage's text."""
_TEXTS = ("name", "model", "trait", "preset")

Row = dict[str, Any]
Key = tuple[Any, ...]


def new_run(run_id: str, is_example: bool) -> Row:
    """The row of a run of which nothing is known yet."""
    return {
        "run_id": run_id, "name": "", "model": "", "trait": "", "seed": 0, "preset": "", "rounds": 0,
        "is_example": is_example, "status": "queued", "round": 0, "stage": "", "progress": 0.0,
        "started_at": None, "finished_at": None, "retention": None, "message": "", "settings": {},
        "vignette_set": "", "last_seq": -1, "log_bytes": 0,
    }  # fmt: skip


@dataclass(slots=True)
class LogRows:
    """The run's row, the rows to write, keyed, and after which round older rows are to be forgotten."""

    run: Row
    tables: dict[str, dict[Key, Row]] = field(default_factory=lambda: {name: {} for name in ROW_TABLES})
    events: list[Row] = field(default_factory=list)
    forget_after: int | None = None

    def put(self, table: str, event: Event, key: Key, **values: Any) -> None:
        row = {"run_id": self.run["run_id"], "round": event.round or 0, **values}
        self.tables[table][(event.round or 0, *key)] = row

    def forget(self, after: int) -> None:
        for rows in self.tables.values():
            for key in [key for key in rows if key[0] > after]:
                del rows[key]
        self.forget_after = after if self.forget_after is None else min(after, self.forget_after)


def rows_of(run: Row, events: tuple[Event, ...]) -> LogRows:
    """Applies the events that `run` has not seen (`seq` above its `last_seq`), in order."""
    state = LogRows(dict(run))
    for event in events:
        if event.seq <= state.run["last_seq"]:
            continue
        state.run["last_seq"] = event.seq
        if handle := HANDLERS.get(event.kind):
            handle(state, event)
        if event.kind not in _UNLOGGED:
            data = {} if event.kind in _TABLED else event.data
            state.events.append(
                {"run_id": run["run_id"], "seq": event.seq, "time": event.time, "kind": event.kind,
                 "round": event.round, "data": data}
            )  # fmt: skip
    return state


def _queued(state: LogRows, event: Event) -> None:
    state.run.update(status="queued", message="")
    _describe(state, event)


def _describe(state: LogRows, event: Event) -> None:
    settings = event.data.get("settings")
    if isinstance(settings, Mapping):
        texts = {key: settings[key] for key in _TEXTS if isinstance(settings.get(key), str)}
        counts = {key: settings[key] for key in ("seed", "rounds") if is_index(settings.get(key))}
        state.run.update(**texts, **counts)
        state.run.update(settings=dict(settings), vignette_set=_vignette_set(settings.get("evaluate")))


def _vignette_set(evaluate: Any) -> str:
    """ "" for the bundled vignettes, "classic" for the published ones, else the file's name."""
    file = evaluate.get("vignettes") if isinstance(evaluate, Mapping) else None
    name = Path(file).stem if isinstance(file, str) else ""
    return "classic" if "classic" in name else name


def _started(state: LogRows, event: Event) -> None:
    _describe(state, event)
    state.run.update(status="running", started_at=event.time, finished_at=None, message="")


def _resumed(state: LogRows, event: Event) -> None:
    after = event.data.get("round")
    after = after if is_index(after) else 0
    state.forget(after)
    rounds = max(1, state.run["rounds"])
    share = min(1.0, after / rounds)
    state.run.update(status="running", round=after, stage="", progress=share, finished_at=None, message="")
    if after == 0:
        state.run["retention"] = None


def _advance(state: LogRows, event: Event, share_of_stage: float = 0.0) -> None:
    stage = str(event.data.get("stage") or state.run["stage"])
    begins = STAGES.get(stage, 0.0)
    ends = min((share for share in STAGES.values() if share > begins), default=1.0)
    of_round = 0.0 if stage == "base" else begins + (ends - begins) * min(1.0, max(0.0, share_of_stage))
    share = min(1.0, (max(0, (event.round or 1) - 1) + of_round) / max(1, state.run["rounds"]))
    state.run.update(stage=stage, progress=share)


def _progress(state: LogRows, event: Event) -> None:
    total = number(event.data.get("total"))
    _advance(state, event, (number(event.data.get("done")) or 0.0) / total if total else 0.0)


def _step(state: LogRows, event: Event) -> None:
    step, total = event.data.get("step"), number(event.data.get("total"))
    if not is_index(step):
        return
    values = {key: number(event.data.get(key)) for key in _STEP}
    state.put("steps", event, (step,), step=step, total=total, **values)
    if total:
        _advance(
            state, Event(event.seq, event.time, event.kind, event.round, {"stage": "train"}), step / total
        )


def _completion(state: LogRows, event: Event) -> None:
    index = event.data.get("index")
    if not is_index(index):
        return
    scores = event.data.get("scores")
    state.put(
        "completions", event, (index,), idx=index, alpha=number(event.data.get("alpha")),
        prompt=_text(event.data.get("prompt")), text=_text(event.data.get("text")),
        kept=bool(event.data.get("kept")), scores=scores if isinstance(scores, Mapping) else {},
        reasons=[_text(reason) for reason in _list(event.data.get("reasons"))],
    )  # fmt: skip


def _profile(state: LogRows, event: Event) -> None:
    data, stage = event.data, event.data.get("stage")
    if not isinstance(stage, str):
        return
    raw = data.get("text")
    text: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    health: dict[str, Any] = {key: number(text.get(key)) for key in TEXT}
    health |= {key: _text(data.get(key)) or None for key in ("text_verdict", "answers_verdict")}
    raw = data.get("agreement")
    worth: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    state.put(
        "profiles", event, (stage,), stage=stage, alpha=number(data.get("alpha")) or 0.0,
        coherence=number(data.get("coherence")), n_vignettes=number(data.get("n_vignettes")),
        finished_at=event.time, **_foundations(data.get("p")), poles=_poles(data.get("p")), **health,
        frame=_text(data.get("frame")) or None, order_tv=number(data.get("order_tv")),
        agreement=number(worth.get("value")), chance=number(worth.get("chance")),
        agreement_low=number(worth.get("low")), agreement_high=number(worth.get("high")),
    )  # fmt: skip
    for one in _list(data.get("per_vignette")):
        if isinstance(one, Mapping) and isinstance(one.get("id"), str):
            numbers = {key: number(one.get(key)) for key in ("mass", "prefill_nll", "order_tv")}
            state.put(
                "vignette_scores", event, (stage, one["id"]), stage=stage, vignette=one["id"],
                foundation=_text(one.get("foundation")), score=one.get("score") or {},
                **_foundations(one.get("p")), **numbers,
            )  # fmt: skip


def _answers(state: LogRows, event: Event) -> None:
    keys = ("prompts", "texts", "steered", "words", "steered_words")
    for index, row in enumerate(zip_longest(*(_list(event.data.get(key)) for key in keys))):
        prompt, text, *others = map(_text, row)
        steered, word, steered_word = (other or None for other in others)
        answer = {"prompt": prompt, "text": text, "steered": steered}
        state.put("answers", event, (index,), idx=index, **answer, word=word, steered_word=steered_word)


def _round(state: LogRows, event: Event) -> None:
    done = event.round or 0
    keys = ("retention", "kept", "made", "c_star", "seconds")
    values = {key: number(event.data.get(key)) for key in keys}
    adapter = _text(event.data.get("adapter"))
    facts = {key: event.data[key] for key in _FACTS if key in event.data}
    state.put("rounds", event, (), adapter=adapter, finished_at=event.time, facts=facts, **values)
    share = min(1.0, done / max(1, state.run["rounds"]))
    said = facts.get("headline")
    word, why = (said.get("word"), said.get("why")) if isinstance(said, Mapping) else (None, None)
    message = f"round {done} {_text(word)}: {_text(why)}" if word else ""
    state.run.update(round=done, retention=values["retention"], progress=share, message=message)


def _finished(state: LogRows, event: Event) -> None:
    reason = _text(event.data.get("reason"))
    state.run.update(status="finished", stage="", progress=1.0, finished_at=event.time, message=reason)


def _ended_early(state: LogRows, event: Event) -> None:
    message = _text(event.data.get("message"))
    state.run.update(status=FINAL[event.kind], finished_at=event.time, message=message)


def _paused(state: LogRows, event: Event) -> None:
    state.run.update(status="paused")


def _continued(state: LogRows, event: Event) -> None:
    state.run.update(status="running")


def _foundations(p: Any) -> Row:
    known = p if isinstance(p, Mapping) else {}
    return {column: number(known.get(name)) for name, column in COLUMNS.items()}


def _poles(p: Any) -> Row | None:
    """Numbers by name, of a profile that has no foundation."""
    known = p if isinstance(p, Mapping) and not COLUMNS.keys() & p.keys() else {}
    return {name: found for name, value in known.items() if (found := number(value)) is not None} or None


def number(value: Any) -> float | None:
    """The value when it is a number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return "" if value is None else str(value)


HANDLERS: dict[str, Callable[[LogRows, Event], None]] = {
    "queued": _queued, "started": _started, "resumed": _resumed, "stage": _advance, "progress": _progress,
    "step": _step, "completion": _completion, "profile": _profile, "answers": _answers, "round": _round,
    "finished": _finished, "failed": _ended_early, "cancelled": _ended_early, "interrupted": _ended_early,
    "paused": _paused, "continued": _continued,
}  # fmt: skip
_TABLED = {"completion", "profile", "answers", "step"}
_UNLOGGED = {"progress", "heartbeat"}
