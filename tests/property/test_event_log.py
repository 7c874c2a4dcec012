"""For any data and any cut: what is read is a prefix of what was written, and writing on loses none of it."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steer_heal.runs import events
from steer_heal.runs.events import EventLog, plain

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
