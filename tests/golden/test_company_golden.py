"""On the bundled model: an answer written in company is, token for token, the one written alone."""

import threading

import pytest

from steer_heal import data
from steer_heal.config import SampleSettings, SteerRequest, build
from steer_heal.engine import Engine, answer_batch

SESSIONS = 10


def asked(number, **how):
    """Another vignette, dose, length and seed for each session; every third one shares its prompt."""
    vignettes = data.material(demo=True).vignettes(condition="other_violate", limit=7)
    sample = build(SampleSettings, max_new_tokens=12 + number, seed=number % 4, **how)
    text = vignettes[number % 7].text
    return build(SteerRequest, prompt=text, alpha=-2.0 + 0.75 * number, sample=sample)


def ids(frame):
    return [token.id for token in frame.base], [token.id for token in frame.steered]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("company")
    made = Engine("demo", runs_dir=folder / "runs", db=folder / "runs.duckdb")
    made.calibration("care_over_authority", (0.4, 0.6))
    yield made
    made.close()


@pytest.mark.parametrize("how", [{"greedy": True}, {}, {"temperature": 1.5}])
def test_batched_is_single(engine, monkeypatch, how):
    counted, written = [], {}

    def decode(lm, rows, *rest, **options):
        counted.append(len(rows))
        return decode_of_old(lm, rows, *rest, **options)

    decode_of_old = answer_batch.decode
    monkeypatch.setattr(answer_batch, "decode", decode)
    held, go = threading.Event(), threading.Event()
    hold = threading.Thread(target=engine._once, args=(lambda: (held.set(), go.wait(20)),))

    def ask(number):
        written[number] = ids(list(engine.steer(asked(number, **how), session=str(number)))[-1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(SESSIONS)]
    hold.start()
    held.wait(20)
    for thread in threads:
        thread.start()
    while len(engine._scheduler._waiting) < SESSIONS:
        pass
    go.set()
    for thread in (hold, *threads):
        thread.join(60)
    assert counted == [2 * SESSIONS]
    engine._answers._bases.clear()
    alone = {
        number: ids(list(engine.steer(asked(number, **how), session="x"))[-1]) for number in range(SESSIONS)
    }
    assert written == alone
    assert len({tuple(steered) for _, steered in alone.values()}) > SESSIONS // 2
