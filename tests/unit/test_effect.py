"""Random directions at the same KL, the persona as text, and what a vector does beside them."""

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from steer_heal import data, models
from steer_heal.config import FOUNDATIONS, CalibrateSettings
from steer_heal.data import measurements
from steer_heal.dose import controls, effect
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate.choice import evaluate
from steer_heal.models import user
from steer_heal.records import Calibration, Controls, Effect, Profile, Stopped, VignetteScore
from steer_heal.vectors.steering import coefficients
from steer_heal.vectors.vector import SteeringVector
from tests.close import assert_near, log_p, model_rounding, rounding

LAYERS = (1, 2)
TARGET = {"Care": 1, "SocialNorms": -1}
SETTINGS = CalibrateSettings(n_prompts=2, n_tokens=4)


def some(lm, n=7):
    return lm.material.vignettes(condition="other_violate", limit=n)


def vector_of(lm, direction_D=None):
    generator = torch.Generator().manual_seed(3)
    one_D = torch.randn(lm.width, generator=generator) if direction_D is None else direction_D
    directions_LD = functional.normalize(one_D.float(), dim=0).expand(lm.n_layers, -1).clone()
    return SteeringVector(directions_LD, torch.ones(lm.n_layers), torch.full((lm.n_layers,), 10.0))


def p(**moved):
    return dict.fromkeys(FOUNDATIONS, 0.1) | moved


def test_as_many_random_directions_as_move_the_trait_as_far_are_counted():
    held = Controls(p(), (p(Care=0.3), p(SocialNorms=0.0), p(Care=0.0)), p(Care=0.6), (5.0, 6.0, 7.0))
    assert held.shifts(TARGET) == pytest.approx((0.2, 0.1, -0.1))
    assert [held.as_far(TARGET, movement) for movement in (0.3, 0.15, 0.05, -1.0)] == [0, 1, 2, 3]
    assert held.sentence(TARGET, 0.3).startswith("0 of 3 random directions of the same KL move it as far")
    assert "no better than random" in held.sentence(TARGET, 0.15)
    assert "no better than random" not in held.sentence(TARGET, 0.3)
    assert held.sentence(TARGET, 0.3).endswith("the persona as text moves it +0.500")


def test_each_control_is_measured_as_if_alone(lm):
    frame = data.frame("choice")
    base = evaluate(lm, some(lm), frame)[0]
    held = controls.measure(lm, LAYERS, (3.0, 5.0), some(lm), frame, base, persona="You are kind.")
    directions_MLD = controls.random_directions(2, lm.n_layers, lm.width)
    assert held.base is base.p
    for m, c_star in enumerate(held.c_stars):
        alone = SteeringVector(directions_MLD[m], torch.ones(lm.n_layers), torch.ones(lm.n_layers))
        dose_KL = coefficients(lm.n_layers, LAYERS, c_star)
        wanted = evaluate(lm, some(lm), frame, vector=alone, coefficients_RL=dose_KL)[0]
        assert_near(held.random[m], wanted.p, model_rounding(lm), log_p(wanted))
    assert held.persona != held.base


def test_random_directions_reach_the_kl_and_are_found_again(lm, tmp_path):
    prompts = [lm.encode_chat([user(text)]) for text in ("Who decides?", "What is this?")]
    asked = (tmp_path, lm, LAYERS, prompts, SETTINGS, 3)
    found = controls.c_stars(*asked)
    assert len(set(found)) == 3
    (file,) = tmp_path.iterdir()

    def again() -> None:
        raise AssertionError("measured again")

    assert controls.c_stars(*asked, pause=again) == found
    assert controls.c_stars(*asked[:-1], 2, pause=again) == found[:2]
    with pytest.raises(AssertionError, match="measured again"):
        controls.c_stars(*asked[:-1], 4, pause=again)
    file.write_text("{")
    with pytest.raises(AssertionError, match="measured again"):
        controls.c_stars(*asked, pause=again)
    with pytest.raises(AssertionError, match="measured again"):
        controls.c_stars(*asked[:2], (1,), *asked[3:], pause=again)


def scored(values):
    rows = tuple(
        VignetteScore(str(i), "Care", {}, p(Care=value), mass, 0.0, 0.0)
        for i, (value, mass) in enumerate(values)
    )
    return Profile(p(), None, len(rows), rows)


def test_an_interval_is_of_the_paired_differences():
    base = scored([(0.1, 1.0), (0.5, 1.0), (0.2, 1.0), (0.9, 0.0)])
    found = effect.intervals(base, scored([(0.3, 1.0), (0.7, 1.0), (0.4, 1.0), (0.0, 1.0)]))
    assert found["Care"] == pytest.approx((0.2, 0.2))
    low, high = effect.intervals(base, scored([(0.1, 1.0), (0.7, 1.0), (0.6, 1.0), (0.0, 1.0)]))["Care"]
    assert (low + high) / 2 == pytest.approx(0.2)
    assert high - low == pytest.approx(2 * 1.959964 * 0.2 / 3**0.5)
    assert effect.intervals(scored([(0.1, 1.0)]), scored([(0.2, 1.0)])) == {}


@pytest.fixture(scope="module")
def demo():
    return models.load("demo")


def test_the_row_of_a_word_in_the_output_layer_promotes_that_word(demo):
    token = demo.tokenizer(" help", add_special_tokens=False)["input_ids"][0]
    word = demo.tokenizer.decode([token]).strip()
    row_D = demo.model.get_output_embeddings().weight[token].detach()
    promoted, demoted = effect.words(demo, vector_of(demo, row_D), (4, 5))
    assert len(promoted) == len(demoted) == effect.N_WORDS
    assert word in promoted
    assert not {*promoted} & {*demoted}
    against, _ = effect.words(demo, vector_of(demo, -row_D), (4, 5))
    assert word not in against


def test_an_effect_is_whole_and_reads_back_as_it_was(demo, tmp_path):
    vector, frame = vector_of(demo), data.frame("choice")
    calibration = Calibration(25.0, 1.0, 1.0, True, ())
    reading = evaluate(demo, some(demo, 14), frame)[0]
    steered_by = CalibratedVector(vector, (4, 5), calibration)
    asked = (demo, data.trait("care_over_authority"), steered_by, some(demo, 14), reading)
    found = effect.measure(*asked, (5.0, 6.0), stop=lambda: False)
    assert found.controls.base == pytest.approx(reading.p)
    moved = {name: found.steered[name] - found.controls.base[name] for name in FOUNDATIONS}
    assert found.movement == pytest.approx(moved["Care"] - moved["SocialNorms"])
    assert all(low <= moved[name] <= high for name, (low, high) in found.intervals.items())
    assert len(found.answers) == effect.N_ANSWERS
    assert any(one.base != one.steered for one in found.answers)
    measurements.write(tmp_path, "kept", {"effect": asdict(found)})
    assert measurements.read(tmp_path, "kept", "effect", Effect) == found
    asked_again = iter([False] * 5 + [True] * 1000)
    with pytest.raises(Stopped):
        effect.measure(*asked, (5.0,), stop=lambda: next(asked_again))


def test_random_directions_are_of_unit_length_and_all_different():
    directions_MLD = controls.random_directions(3, 4, 64)
    assert_near(directions_MLD.norm(dim=-1), torch.ones(3, 4), rounding(64))
    flat = [row for vector in directions_MLD for row in vector]
    assert all(abs(float(a @ b)) < 0.6 for a, b in pairwise(flat))
    assert torch.equal(controls.random_directions(2, 4, 64), directions_MLD[:2])
