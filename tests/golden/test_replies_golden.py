"""The residuals of paired replies against transformers' own hidden states, one chat at a time."""

from dataclasses import replace

import pytest
import torch

from steer_heal.config import ExtractSettings, SettingsError
from steer_heal.models import user
from steer_heal.records import Trait
from steer_heal.vectors import vector as vectors
from tests import tiny

SCENES = ("A man fell on the ice and lay there.", "It rains.", "The queue is long; nobody moves at all.")
PAIRS = (("Help him up.", "Wait."), ("Oh no!", "The manager has to be asked first."), ("Come in.", "Go on."))
TRAIT = Trait("warm", "Warm", "", "Be warm.", "Be cold.", {}, SCENES, PAIRS)
REPLIES = ExtractSettings(method="replies")


def alone(lm, scene, reply):
    """Means over the reply's tokens behind every block but the last, whose own output transformers norms."""
    prompt = lm.encode_chat([user(scene)])
    whole = [*prompt, *lm.tokenizer(reply, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        states = lm.model(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states
    return torch.stack([state[0, len(prompt) :].double().mean(dim=0) for state in states[1:-1]])


def test_they_are_the_means_over_each_reply_read_alone(lm):
    sides = vectors.reply_residuals(lm, TRAIT)
    for side, found_NLD in enumerate(sides):
        wanted = torch.stack([alone(lm, scene, pair[side]) for scene in SCENES for pair in PAIRS])
        torch.testing.assert_close(found_NLD[:, :-1], wanted, rtol=1e-4, atol=1e-5)


def test_the_vector_is_their_difference_of_means_at_unit_length(lm):
    heard = []
    made = vectors.extract(lm, TRAIT, [], REPLIES, progress=lambda done, of: heard.append((done, of)))
    positive, negative = vectors.reply_residuals(lm, TRAIT)
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
        vectors.extract(tiny.shared(), replace(TRAIT, **lacking), [], REPLIES)
