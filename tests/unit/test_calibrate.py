import json
import math

import pytest

from steer_heal.config import CalibrateSettings, SettingsError
from steer_heal.dose import calibrate as calibration
from steer_heal.dose.calibrate import cached, quantile
from steer_heal.records import Trait
from steer_heal.vectors.vector import SteeringVector
from tests import tiny

TRAIT = Trait("kind", "Kind", "", "Be kind.", "Obey.", {})
SETTINGS = CalibrateSettings(n_tokens=4, n_prompts=2, tolerance=0.05)
PROMPTS = [(2, 9, 8), (2, 7, 30, 31)]


def search(measure, settings, scout=None, progress=None):
    """One search, whose measures know nothing of others."""

    def alone(one):
        return one and (lambda asked: one([c for _, c in asked]))

    return calibration.search(1, alone(measure), settings, scout=alone(scout), progress=progress)[0]


@pytest.fixture
def vector():
    return tiny.vector(tiny.shared("llama"), seed=1)


@pytest.mark.parametrize("root", [0.11, 0.5, 3.0, 16.3, 250.0, 1000.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
def test_the_search_finds_the_crossing_in_few_passes(root, power):
    passes = []

    def measure(doses):
        passes.append(len(doses))
        return [(c / root) ** power for c in doses]

    found = search(measure, CalibrateSettings())
    assert found.reached
    assert found.c_star == pytest.approx(root, rel=0.005)
    assert found.kl_p95 == pytest.approx(1.0, rel=0.005 * power)
    assert len(passes) <= 4
    assert len(found.history) == sum(passes[1:])


@pytest.mark.parametrize(
    ("kl", "root"),
    [
        (lambda c: 0.2 if c < 7.7 else 30.0, 7.7),
        (lambda c: 2.0 if 3.0 <= c < 50.0 or c > 400.0 else 0.1, 3.0),
        (lambda c: quantile([c**2 / 100 if c < 30 else math.nan], 0.95), 10.0),
    ],
    ids=["a jump", "the lowest of several crossings", "a model that breaks into no numbers"],
)
def test_the_search_finds(kl, root):
    found = search(lambda doses: [kl(c) for c in doses], CalibrateSettings())
    assert found.reached
    assert found.c_star == pytest.approx(root, rel=0.005)


@pytest.mark.parametrize(("kl", "end", "word"), [(0.25, 1024.0, "never reached"), (9.5, 0.1, "already more")])
def test_a_bracket_end_is_said_with_the_kl_it_has(kl, end, word):
    found = search(lambda doses: [kl for _ in doses], CalibrateSettings())
    assert (found.reached, found.c_star, found.kl_p95) == (False, end, kl)
    assert word in found.message
    assert f"{kl:g} nats" in found.message


@pytest.mark.parametrize("error", [0.0, 0.01, 0.3, 1.0, 4.0, 300.0])
def test_a_scout_that_misleads_costs_passes_but_not_the_answer(error):
    """Also one that sees no crossing."""
    found = search(
        lambda doses: [c / 12.5 for c in doses],
        CalibrateSettings(),
        scout=lambda doses: [c / 12.5 * error for c in doses],
    )
    assert found.c_star == pytest.approx(12.5, rel=0.005)
    assert all(kl == c / 12.5 for c, kl in found.history)


def test_a_tolerance_beyond_the_floats_ends():
    found = search(list, CalibrateSettings(tolerance=1e-300))
    assert found.c_star == pytest.approx(1.0, rel=1e-12)


def test_progress_ends_and_never_passes_its_total():
    heard = []
    search(lambda doses: list(doses), CalibrateSettings(), progress=lambda done, n: heard.append((done, n)))
    assert [done for done, _ in heard] == list(range(1, len(heard) + 1))
    assert all(done < n for done, n in heard)


def test_no_prompts_or_no_layers(vector):
    lm = tiny.shared("llama")
    with pytest.raises(SettingsError):
        calibration.calibrate(lm, vector, (1,), [], SETTINGS)
    with pytest.raises(SettingsError):
        calibration.calibrate(lm, vector, (), PROMPTS, SETTINGS)


def test_the_cache_answers_the_same_question_and_no_other(tmp_path, vector, monkeypatch):
    asked = []
    monkeypatch.setattr(calibration, "calibrate", lambda *a, **k: asked.append(a) or search(list, SETTINGS))
    lm = tiny.shared("llama")
    first = cached(tmp_path, lm, TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
    assert cached(tmp_path, lm, TRAIT, vector, (1, 2), PROMPTS, SETTINGS) == first
    assert len(asked) == 1
    other_vector = SteeringVector(vector.directions_LD.roll(1, 0), vector.norms_L, vector.residual_norms_L)
    other_trait = Trait("kind", "Kind", "", "Be unkind.", "Obey.", {})
    for question in (
        (tiny.shared("qwen3"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS),
        (lm, other_trait, vector, (1, 2), PROMPTS, SETTINGS),
        (lm, TRAIT, other_vector, (1, 2), PROMPTS, SETTINGS),
        (lm, TRAIT, vector, (1,), PROMPTS, SETTINGS),
        (lm, TRAIT, vector, (1, 2), PROMPTS[:1], SETTINGS),
        (lm, TRAIT, vector, (1, 2), PROMPTS, CalibrateSettings(target_kl=2.0)),
    ):
        before = len(asked)
        cached(tmp_path, *question)
        assert len(asked) == before + 1


def test_a_damaged_cache_file_is_measured_again(tmp_path, vector):
    question = (tmp_path, tiny.shared("llama"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
    first = cached(*question)
    (file,) = tmp_path.iterdir()
    for damage in ("", "{}", json.dumps({"version": 1, "calibration": {"history": []}}), "[1, 2]"):
        file.write_text(damage)
        assert cached(*question) == first
    assert json.loads(file.read_text())["calibration"]["c_star"] == first.c_star


def test_a_folder_that_cannot_be_written(tmp_path, vector):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be kept"):
        cached(tmp_path / "file", tiny.shared("llama"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
