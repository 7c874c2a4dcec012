"""For any data and any cut: what is read is a prefix of what was written, and its rows are the same."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steer_heal.records import Event, RunStatus
from steer_heal.runs import events
from steer_heal.runs.events import EventLog, plain
from steer_heal.runs.store.rows import HANDLERS, new_run, rows_of

text = st.text()
leaf = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | text
json_like = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
data = st.dictionaries(text, json_like, max_size=3)
records = st.lists(
    st.tuples(st.text(min_size=1), st.none() | st.integers(0, 32), data), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records, st.floats(0, 1))
def test_any_cut_of_any_log_is_a_prefix_and_can_be_written_on(records: list[Any], share: float) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        with EventLog(path) as log:
            written = [log.append(*one) for one in records]
        whole = path.read_bytes()
        assert list(events.read(path).events) == written
        cut = whole[: round(share * len(whole))]
        path.write_bytes(cut)
        kept = events.read(path)
        assert list(kept.events) == written[: cut.count(b"\n")]
        with EventLog(path) as log:
            added = log.append("resumed", None, {"round": 1})
        assert list(events.read(path).events) == [*kept.events, added]
        assert events.read(path, kept.offset).events == (added,)


@given(json_like)
def test_plain_is_idempotent_and_finite(value: Any) -> None:
    once = plain(value)
    assert plain(once) == once
    if isinstance(once, float):
        assert math.isfinite(once)


KINDS = [*HANDLERS, "other"]
KEYS = "stage round index step total done p per_vignette settings prompts texts"
value = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.floats()
    | st.sampled_from(["base", "healed", "train", "x"])
    | st.lists(st.sampled_from(["a", None]), max_size=2)
    | st.just({"Care": 0.5, "rounds": 2, "seed": 1, "name": 3})
    | st.just([{"id": "v", "p": {"Care": 1.0}}])
)
said = st.dictionaries(st.sampled_from(KEYS.split()), value, max_size=5).map(plain)
event = st.tuples(st.floats(0.0, 1e9), st.sampled_from(KINDS), st.none() | st.integers(0, 3), said)
logs = st.lists(event, max_size=14).map(lambda made: tuple(Event(seq, *one) for seq, one in enumerate(made)))


def apply(
    run: dict[str, Any], tables: dict[str, dict[Any, Any]], events: tuple[Event, ...]
) -> dict[str, Any]:
    """What the store does with the rows."""
    state = rows_of(run, events)
    for name, rows in state.tables.items():
        known = tables.setdefault(name, {})
        if state.forget_after is not None:
            for key in [key for key in known if key[0] > state.forget_after]:
                del known[key]
        known.update(rows)
    return state.run


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs, st.lists(st.integers(0, 14), max_size=4), st.integers(0, 3))
def test_pieces_give_what_the_whole_gives(events, cuts, again):
    whole: dict[str, dict[Any, Any]] = {}
    run = apply(new_run("r", False), whole, events)
    pieces: dict[str, dict[Any, Any]] = {}
    piecewise = new_run("r", False)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(events)], strict=True):
        piecewise = apply(piecewise, pieces, events[max(0, begin - again) : end])
    assert piecewise == run
    assert pieces == whole


@given(logs)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_progress_stays_a_share(events):
    run = rows_of(new_run("r", False), events).run
    assert 0.0 <= run["progress"] <= 1.0
    assert run["status"] in get_args(RunStatus)
