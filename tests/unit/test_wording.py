"""Every refusal of a setting reads as a sentence that says what would be right."""

from __future__ import annotations

import math

import pytest

from steer_heal.config import DoseRequest, HealSettings, SampleSettings, SettingsError, SteerRequest, build

STEER = {"trait": "care_over_authority", "prompt": "A man lies.", "alpha": 1.0}


@pytest.mark.parametrize(
    ("cls", "wrong", "said"),
    [
        (SteerRequest, {"prompt": ""}, "prompt is empty: type something."),
        (SteerRequest, {"prompt": "x" * 9000}, "prompt has 9000 characters: shorten it to 8000 or fewer."),
        (SteerRequest, {"alpha": math.nan}, "alpha must be a number, not nan."),
        (SteerRequest, {"alpha": "a lot"}, "alpha must be a number, not 'a lot'."),
        (SteerRequest, {"alpha": 65}, "alpha must be at most 64, not 65."),
        (SteerRequest, {"band": (0.9, 0.6)}, "The band 0.9-0.6 is reversed: give the lower end first."),
        (SteerRequest, {"colour": 1}, "colour is not a setting: see --help or the settings of a run."),
        (HealSettings, {"rounds": 0}, "rounds must be at least 1, not 0."),
        (HealSettings, {"rounds": 33}, "rounds must be at most 32, not 33."),
        (DoseRequest, {"alphas": [1.0] * 65}, "alphas must have at most 64, not 65."),
        (SampleSettings, {"max_new_tokens": 513}, "max_new_tokens must be at most 512, not 513."),
        (HealSettings, {"rounds": 2.5}, "rounds must be a whole number, not 2.5."),
        (HealSettings, {"preset": "huge"}, "preset must be 'quick' or 'standard', not 'huge'."),
        (HealSettings, {"data": {"alphas": []}}, "data.alphas must have at least 1, not 0."),
        (
            HealSettings,
            {"train": {"divergence": "x"}},
            "train.divergence must be 'nll', 'kl_fwd' or 'kl_rev', not 'x'.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(cls, wrong, said):
    values = {**STEER, **wrong} if cls is SteerRequest else wrong
    with pytest.raises(SettingsError) as refused:
        build(cls, **values)
    assert str(refused.value) == said
