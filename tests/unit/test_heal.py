"""Training one round: it learns, stops, repeats itself by its seed, and fails with a word."""

import math
import random

import pytest
import torch

from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal import Example, batches, check_memory, learning_rate, needed_bytes, split, train_round
from steer_heal.heal.adapters import AdapterStack
from steer_heal.records import RoundFailed, Stopped
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.rounds import SETTINGS, trained


@pytest.fixture
def lm():
    return tiny.language_model("gemma3", n_layers=2)


def test_memory_that_cannot_suffice_is_refused_with_the_numbers(lm, monkeypatch):
    args = (SETTINGS, 2, 100, 50, 64)
    check_memory(lm, *args)
    monkeypatch.setattr("steer_heal.heal.memory.free", lambda device: needed_bytes(lm, *args) - 1)
    with pytest.raises(SettingsError, match=r"GiB of memory on cpu .*\(batches of 4 times 150 tokens"):
        check_memory(lm, *args)
    larger = (SETTINGS.model_copy(update={"batch_size": 8}), 2, 100, 50, 64)
    assert needed_bytes(lm, *larger) > 1.5 * needed_bytes(lm, *args)


def test_training_lowers_the_loss_and_measures_what_was_held_out(lm, examples):
    steps, _ = trained(lm, examples)
    assert [step["step"] for step in steps] == [*range(1, len(steps) + 1)]
    assert len(steps) == steps[0]["total"]
    assert steps[-1]["nll"] < steps[0]["nll"]
    held = [step["held_out_nll"] for step in steps if "held_out_nll" in step]
    assert len(held) == SETTINGS.epochs
    assert held[-1] < held[0]


def test_the_barrier_holds_the_student_back(lm, examples):
    free, _ = trained(lm, examples, SETTINGS.model_copy(update={"divergence": "nll"}))
    held, _ = trained(lm, examples, SETTINGS.model_copy(update={"lam": 20.0, "tau": 0.0}))
    assert all(step["divergence"] == 0.0 for step in free)
    assert held[-1]["nll"] > free[-1]["nll"] + 0.1
    assert_near(held[0]["divergence"], 0.0, model_rounding(lm), whole=held[0]["nll"])


def test_the_rate_warms_up_and_falls_to_nothing():
    settings = TrainSettings(lr=1.0)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert learning_rate(0, 1, settings) == 1.0


def test_split_and_batches_lose_nothing(examples):
    kept, held = split(examples, 7, 0.25)
    assert sorted(map(id, kept + held)) == sorted(map(id, examples))
    assert len(held) == 3
    assert split(examples, 7, 0.25) == (kept, held)
    assert split(examples[:1], 7, 0.9) == (examples[:1], [])
    kept, held = split([*examples, *examples[:6]], 7, 0.25)
    assert (len(held), len({*kept, *held})) == (3, len(examples))
    assert not {*kept} & {*held}
    epoch = batches(examples, 5, random.Random(1))
    assert sorted(len(batch) for batch in epoch) == [2, 5, 5]
    assert sorted(map(id, (row for batch in epoch for row in batch))) == sorted(map(id, examples))


def test_a_round_without_examples_or_with_a_loss_that_is_not_finite_fails(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    for none in ([], [Example((2, 3), ())]):
        with pytest.raises(RoundFailed, match="no completions"):
            next(train_round(lm, stack, none, SETTINGS, seed=0))
    with torch.no_grad():
        stack.trainable()[0].fill_(math.nan)
        stack.trainable()[1].fill_(math.nan)
    with pytest.raises(RoundFailed, match="not finite at step 1"):
        list(train_round(lm, stack, examples, SETTINGS, seed=0))


def test_stop_is_asked_between_steps(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    asked = iter([False, False, True])
    steps = train_round(lm, stack, examples, SETTINGS, seed=0, stop=lambda: next(asked))
    assert [next(steps)["step"], next(steps)["step"]] == [1, 2]
    with pytest.raises(Stopped):
        next(steps)
