"""On the bundled model: an answer written in company is, token for token, the one written alone."""

import pytest

from steer_heal import data, generate, models
from steer_heal.config import SampleSettings, SteerRequest, build
from steer_heal.engine import Engine, answer_batch
from tests.crowd import Crowd, ids

SESSIONS = 10


def asked(number, **how):
    """Another vignette, dose, length and seed for each session; every third one shares its prompt."""
    vignettes = data.material(demo=True).vignettes(condition="other_violate", limit=7)
    sample = build(SampleSettings, max_new_tokens=12 + number, seed=number % 4, **how)
    text = vignettes[number % 7].text
    return build(SteerRequest, prompt=text, alpha=-2.0 + 0.75 * number, sample=sample)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Two on one model: what the one has written the other does not know."""
    folder, lm = tmp_path_factory.mktemp("company"), models.load("demo")
    made = [Engine(lm=lm, runs_dir=folder / "runs", db=folder / f"{n}.duckdb") for n in range(2)]
    for engine in made:
        engine.calibration("care_over_authority", (0.4, 0.6))
    yield made
    for engine in made:
        engine.close()


@pytest.mark.parametrize("how", [{"greedy": True}, {}, {"temperature": 1.5}])
def test_batched_is_single(engines, monkeypatch, how):
    counted, requests = [], {str(number): asked(number, **how) for number in range(SESSIONS)}

    def decode(lm, rows, *rest, **options):
        counted.append(len(rows))
        return generate.decode(lm, rows, *rest, **options)

    monkeypatch.setattr(answer_batch, "decode", decode)
    together, other = engines
    written = Crowd(together, requests).run()
    assert counted == [2 * SESSIONS]
    alone = {name: ids(list(other.steer(one, session="x"))[-1]) for name, one in requests.items()}
    assert written == alone
    assert len({tuple(steered) for _, steered in alone.values()}) > SESSIONS // 2
