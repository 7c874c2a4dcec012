"""Answers of several sessions in one batch: what begins together, who leaves, whose error is whose."""

from collections.abc import Iterator
from typing import Any

from steer_heal import generate
from steer_heal.engine import Engine, answer_batch
from steer_heal.engine.scheduler import AT_ONCE
from tests import tiny
from tests.crowd import Crowd, ids, request


def test_who_waits_begins_together_and_each_gets_what_it_would_get_alone(engine, tmp_path, batches):
    hows: list[dict[str, Any]] = [{}, {"seed": 5}, {"greedy": True, "n": 5}, {"temperature": 0.6, "n": 20}]
    asked = {
        f"s{number}": request(f"prompt {number % 5}", alpha=number - 4.0, **hows[number % 4])
        for number in range(9)
    }
    together = Crowd(engine, asked).run()
    assert batches == [18]
    other = Engine(lm=tiny.endless(), runs_dir=tmp_path / "r2", db=tmp_path / "2.duckdb")
    alone = {name: ids(list(other.steer(one, session="x"))[-1]) for name, one in asked.items()}
    other.close()
    assert together == alone


def test_a_bad_request_in_company_fails_alone(engine):
    asked = {"good": request("fine"), "long": request("long " * 1599), "also": request("fine too")}
    crowd = Crowd(engine, asked)
    got = crowd.run()
    assert got.keys() == {"good", "also"}
    assert all(crowd.frames[name][-1].done for name in got)
    assert "tokens" in crowd.errors["long"]


def test_a_batch_that_breaks_is_written_again_one_by_one(engine, monkeypatch, caplog):
    """Whose rows the model cannot take gets the error; the others get their whole answers."""
    asked = {f"s{number}": request(f"prompt {number}", alpha=float(number)) for number in range(3)}
    expected = {name: ids(list(engine.steer(one, session="x"))[-1]) for name, one in asked.items()}

    def decode(lm: Any, rows: Any, *rest: Any, **options: Any) -> Iterator[Any]:
        for number, step in enumerate(generate.decode(lm, rows, *rest, **options)):
            if number == 3 and any(row.alpha == 2.0 for row in rows):
                raise RuntimeError("no memory for this one")
            yield step

    monkeypatch.setattr(answer_batch, "decode", decode)
    crowd = Crowd(engine, asked)
    got = crowd.run()
    assert crowd.errors == {"s2": "no memory for this one"}
    assert {name: got[name] for name in ("s0", "s1")} == {name: expected[name] for name in ("s0", "s1")}
    assert "written alone" in caplog.text


def test_one_that_is_replaced_in_company_leaves_and_the_others_go_on(engine):
    names = [f"s{number}" for number in range(4)]
    streams = {name: engine.steer(request(f"long {name}", n=300), session=name) for name in names}
    for stream in streams.values():
        while not next(stream).steered:
            pass
    newer = list(engine.steer(request("newer", n=3), session="s1"))
    assert newer[-1].done
    last = list(streams["s1"])[-1]
    assert (last.done, last.superseded, len(last.steered) < 300) == (True, True, True)
    assert not next(streams["s2"]).done
    for name in ("s0", "s2", "s3"):
        engine.stop(name)
        assert list(streams[name])[-1].message == "Stopped."


def test_only_so_many_begin_together_as_fit_and_the_others_wait(engine, monkeypatch, batches):
    monkeypatch.setattr(answer_batch, "rows_that_fit", lambda *_: 2)
    asked = {f"s{number}": request(f"fits {number}", n=4) for number in range(5)}
    got = Crowd(engine, asked).run()
    assert batches == [4, 4, 2]
    assert len(got) == 5
    assert AT_ONCE >= 3
