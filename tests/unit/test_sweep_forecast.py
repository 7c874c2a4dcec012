"""What a sweep would take, by hand."""

from dataclasses import replace

from steer_heal.config import heal_settings
from steer_heal.engine.sweep_forecast import forecast
from tests.fake_engine import FakeEngine

ROW = replace(
    FakeEngine().runs.rows()[0], is_example=False, model="demo", preset="quick", status="finished", round=2,
    started_at=0.0,
)  # fmt: skip
RUNS = [
    replace(ROW, run_id="a", finished_at=100.0),
    replace(ROW, run_id="b", finished_at=300.0),
    replace(ROW, run_id="example", finished_at=1e6, is_example=True),
    replace(ROW, run_id="going", finished_at=1e6, status="running"),
    replace(ROW, run_id="other", finished_at=1e6, model="other"),
]
TWO = heal_settings("quick", model="demo", rounds=2)


def test_time_is_rounds_by_the_median_pace_and_memory_the_most_that_one_needs() -> None:
    """Paces 50 and 150 s a round, in the median 100: six rounds, two at a time, are 300 s."""
    told = forecast([TWO] * 3, ["seed=-1: bad"], RUNS, [3, 5, 4], at_once=2, left=7)
    assert (told.runs, told.skipped, told.at_once, told.known) == (3, ("seed=-1: bad",), 2, 2)
    assert (told.seconds, told.n_bytes, told.left) == (300.0, 5, 7)
    assert forecast([TWO], [], RUNS, [3], at_once=16, left=7).seconds == 200.0


def test_where_a_model_has_not_finished_a_run_here_the_time_is_not_known() -> None:
    third = heal_settings("quick", model="third", rounds=1)
    told = forecast([TWO, third], [], RUNS, [3, None], at_once=1, left=7)
    assert (told.seconds, told.n_bytes) == (None, None)
    told = forecast([], [], RUNS, [], at_once=1, left=7)
    assert (told.runs, told.known, told.seconds, told.n_bytes) == (0, 0, None, None)
