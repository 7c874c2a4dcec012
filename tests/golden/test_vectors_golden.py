"""c* against bisection one dose at a time; residuals of replies against transformers, one chat at a time."""

import math
from dataclasses import replace

import pytest
import torch

from steer_heal.config import CalibrateSettings, ExtractSettings, SettingsError
from steer_heal.dose.calibrate import calibrate, calibrate_each
from steer_heal.dose.controls import random_directions
from steer_heal.models import user
from steer_heal.records import Trait
from steer_heal.vectors import vector as vectors
from steer_heal.vectors.steering import coefficients, steer
from steer_heal.vectors.vector import SteeringVector, extract
from tests import tiny
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


SCENES = ("A man fell on the ice and lay there.", "It rains.", "The queue is long; nobody moves at all.")
PAIRS = (("Help him up.", "Wait."), ("Oh no!", "The manager has to be asked first."), ("Come in.", "Go on."))
WARM = Trait("warm", "Warm", "", "Be warm.", "Be cold.", {}, SCENES, PAIRS)
REPLIES = ExtractSettings(method="replies")


def alone(lm, scene, reply):
    """Means over the reply's tokens behind every block but the last, whose own output transformers norms."""
    prompt = lm.encode_chat([user(scene)])
    whole = [*prompt, *lm.tokenizer(reply, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        states = lm.model(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states
    return torch.stack([state[0, len(prompt) :].double().mean(dim=0) for state in states[1:-1]])


def test_they_are_the_means_over_each_reply_read_alone(lm):
    sides = vectors.reply_residuals(lm, WARM)
    for side, found_NLD in enumerate(sides):
        wanted = torch.stack([alone(lm, scene, pair[side]) for scene in SCENES for pair in PAIRS])
        torch.testing.assert_close(found_NLD[:, :-1], wanted, rtol=1e-4, atol=1e-5)


def test_the_vector_is_their_difference_of_means_at_unit_length(lm):
    heard = []
    made = vectors.extract(lm, WARM, [], REPLIES, progress=lambda done, of: heard.append((done, of)))
    positive, negative = vectors.reply_residuals(lm, WARM)
    wanted_LD = positive.mean(dim=0) - negative.mean(dim=0)
    torch.testing.assert_close(
        (made.directions_LD * made.norms_L[:, None]).double(), wanted_LD, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(made.directions_LD.norm(dim=-1), torch.ones(lm.n_layers))
    assert heard == [(6, 18), (12, 18), (18, 18)]
    recipe = ("trait", "method", "scenes", "pairs", "normalized")
    assert {key: made.meta[key] for key in recipe} == {
        "trait": "warm", "method": "replies", "scenes": "3", "pairs": "3", "normalized": "yes"
    }  # fmt: skip


@pytest.mark.parametrize("lacking", [{"replies": ()}, {"scenes": ()}])
def test_a_trait_without_them_is_refused_in_one_sentence(lacking):
    with pytest.raises(SettingsError, match=r"'warm' has no paired replies: .* method mean_diff"):
        vectors.extract(tiny.shared(), replace(WARM, **lacking), [], REPLIES)
