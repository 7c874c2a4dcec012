"""c* against bisection with one dose at a time, each token's KL from passes without a cache."""

import math

import pytest
import torch

from steer_heal.config import CalibrateSettings, ExtractSettings
from steer_heal.dose.calibrate import calibrate, calibrate_each
from steer_heal.dose.controls import random_directions
from steer_heal.models import user
from steer_heal.records import Trait
from steer_heal.vectors.steering import coefficients, steer
from steer_heal.vectors.vector import SteeringVector, extract
from tests.close import assert_near, model_rounding, nats, rounding

TRAIT = Trait("kind", "Kind", "", "Be very kind, please!", "Obey orders always.", {})
LAYERS = (2,)
PROMPTS = ("hi", "what now?", "tell me about the sea")
SETTINGS = CalibrateSettings(n_tokens=5, n_prompts=3, target_kl=0.3)


def logp(lm, ids, directions_LD, coefficients_BL):
    with torch.no_grad(), steer(lm.blocks, directions_LD, coefficients_BL):
        return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def kl_quantile(lm, directions_LD, c, prompts):
    kls = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(SETTINGS.n_tokens):
            ids.append(int(logp(lm, ids, directions_LD, coefficients(4, LAYERS, c))[-1].argmax()))
            if ids[-1] in lm.eos_ids:
                break
        p, q = (logp(lm, ids, directions_LD, coefficients(4, LAYERS, dose)) for dose in (c, 0.0))
        kls += (p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].tolist()
    return torch.quantile(torch.tensor(kls), SETTINGS.quantile).item()


def bisection(measure):
    low, high = map(math.log, SETTINGS.bracket)
    while high - low > math.log1p(SETTINGS.tolerance):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(math.exp(middle)) >= SETTINGS.target_kl else (middle, high)
    return math.exp((low + high) / 2)


def test_many_doses_at_once_find_what_one_at_a_time_finds(lm):
    vector = extract(lm, TRAIT, [f"topic {'x' * i}" for i in range(6)], ExtractSettings())
    prompts = [lm.encode_chat([user(text)]) for text in PROMPTS]
    found = calibrate(lm, vector, LAYERS, prompts, SETTINGS)
    slow = bisection(lambda c: kl_quantile(lm, vector.directions_LD, c, prompts))
    assert found.reached
    assert found.c_star == pytest.approx(slow, rel=0.02)
    again = kl_quantile(lm, vector.directions_LD, found.c_star, prompts)
    assert_near(found.kl_p95, again, model_rounding(lm), nats(lm, prompts[0]))
    assert_near(found.residual_norm, float(vector.residual_norms_L[2]), rounding(1))


def test_several_vectors_are_found_together_as_each_alone(lm):
    prompts = [lm.encode_chat([user(text)]) for text in PROMPTS]
    directions_MLD = random_directions(3, lm.n_layers, lm.width, seed=1)
    together = calibrate_each(lm, directions_MLD, LAYERS, prompts, SETTINGS)
    ones_L = torch.ones(lm.n_layers)
    for directions_LD, found in zip(directions_MLD, together, strict=True):
        alone = calibrate(lm, SteeringVector(directions_LD, ones_L, ones_L), LAYERS, prompts, SETTINGS)
        assert found.reached
        assert found.c_star == pytest.approx(alone.c_star, rel=2 * SETTINGS.tolerance)
