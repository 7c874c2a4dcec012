import math
import random

import pytest
import torch

from steer_heal import losses
from steer_heal.adapters import AdapterStack
from steer_heal.config import TrainSettings
from steer_heal.heal import (
    Example,
    Reference,
    batches,
    completion_labels,
    completion_logits,
    held_out_nll,
    learning_rate,
    split,
    train_round,
)
from steer_heal.records import RoundFailed, Stopped
from tests import tiny

SETTINGS = TrainSettings(rank=2, epochs=3, batch_size=4, lr=1e-2, held_out=0.25)


@pytest.fixture
def lm():
    return tiny.language_model("gemma3", n_layers=2)


@pytest.fixture
def examples():
    rng = random.Random(0)
    return [
        Example((2, *(rng.randrange(10, 200) for _ in range(rng.randint(2, 9)))), (65, 66, 67 + index % 2, 1))
        for index in range(12)
    ]


def trained(lm, examples, settings=SETTINGS, seed=4):
    stack = AdapterStack(lm)
    stack.fresh(1, settings, seed=seed)
    steps = list(train_round(lm, stack, examples, settings, seed=seed))
    weights = torch.cat([parameter.detach().flatten() for parameter in stack.trainable()])
    stack.unload()
    return steps, weights


def test_completion_logits_predict_the_completion(lm):
    batch = [Example((2, 30, 31), (40, 41)), Example((2, 50), (60, 61, 62, 63))]
    logits_BTV, labels_BT = completion_logits(lm, batch), completion_labels(batch, lm.device)
    assert logits_BTV.shape[:2] == labels_BT.shape == (2, 4)
    for row, (example, labels_T) in enumerate(zip(batch, labels_BT, strict=True)):
        alone = lm.model(torch.tensor([[*example.prompt_ids, *example.completion_ids]])).logits[0]
        n = len(example.completion_ids)
        torch.testing.assert_close(logits_BTV[row, -n:], alone[-n - 1 : -1], rtol=1e-4, atol=1e-4)
        assert labels_T.tolist() == [losses.IGNORE] * (4 - n) + list(example.completion_ids)


def test_training_lowers_the_loss_and_measures_what_was_held_out(lm, examples):
    steps, _ = trained(lm, examples)
    assert [step["step"] for step in steps] == list(range(1, steps[0]["total"] + 1))
    assert steps[-1]["nll"] < steps[0]["nll"]
    held = [step["held_out_nll"] for step in steps if "held_out_nll" in step]
    assert len(held) == SETTINGS.epochs
    assert held[-1] < held[0]


def test_the_same_seed_gives_the_same_round(lm, examples):
    first, weights = trained(lm, examples)
    torch.manual_seed(99)
    random.seed(99)
    again, same_weights = trained(lm, examples)
    assert again == first
    assert torch.equal(same_weights, weights)
    other, _ = trained(lm, examples, seed=5)
    assert other != first


def test_the_barrier_holds_the_student_back(lm, examples):
    free, _ = trained(lm, examples, SETTINGS.model_copy(update={"divergence": "nll"}))
    held, _ = trained(lm, examples, SETTINGS.model_copy(update={"lam": 20.0, "tau": 0.0}))
    assert all(step["divergence"] == 0.0 for step in free)
    assert held[-1]["nll"] > free[-1]["nll"] + 0.1
    assert held[0]["divergence"] == pytest.approx(0.0, abs=1e-6)


def test_gradient_accumulation_gives_the_same_first_step(lm, examples):
    same = [example for example in examples if len(example.completion_ids) == 4][:8]
    settings = SETTINGS.model_copy(update={"divergence": "nll", "held_out": 0.0, "epochs": 1})
    whole, weights = trained(lm, same, settings.model_copy(update={"batch_size": 8}))
    parts, other = trained(lm, same, settings.model_copy(update={"batch_size": 2, "grad_accumulation": 4}))
    assert len(whole) == len(parts) == 1
    assert parts[0]["nll"] == pytest.approx(whole[0]["nll"], rel=1e-5)
    torch.testing.assert_close(other, weights, rtol=1e-2, atol=1e-4)


def test_a_kept_reference_is_the_recomputed_one(lm, examples, monkeypatch):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    kept = Reference(lm, stack, SETTINGS, 10)
    first = kept.logits(examples[:4])
    second = kept.logits(examples[:2])
    monkeypatch.setattr("steer_heal.heal.KEPT_REFERENCE_BYTES", 0)
    fresh = Reference(lm, stack, SETTINGS, 10)
    torch.testing.assert_close(first, fresh.logits(examples[:4]))
    torch.testing.assert_close(second, fresh.logits(examples[:2]), rtol=1e-4, atol=1e-4)


def test_reference_base_ignores_the_history(lm, examples):
    stack = AdapterStack(lm)
    base = completion_logits(lm, examples[:2]).detach()
    stack.fresh(1, SETTINGS, seed=0)
    with torch.no_grad():
        for parameter in stack.trainable():
            parameter.add_(0.1)
    stack.fold()
    student = completion_logits(lm, examples[:2]).detach()
    stack.fresh(2, SETTINGS, seed=0)
    for which, wanted in (("base", base), ("prev", student)):
        settings = SETTINGS.model_copy(update={"reference": which})
        assert torch.equal(Reference(lm, stack, settings, 8).logits(examples[:2]), wanted)
    assert not torch.equal(base, student)


def test_the_rate_warms_up_and_falls_to_nothing():
    settings = TrainSettings(lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    assert learning_rate(0, 1, TrainSettings(lr=1.0, warmup=0.0)) == 1.0


def test_split_and_batches_lose_nothing(examples):
    kept, held = split(examples, 0.25, 7)
    assert sorted(map(id, kept + held)) == sorted(map(id, examples))
    assert len(held) == 3
    assert split(examples, 0.25, 7) == (kept, held)
    assert split(examples[:1], 0.9, 7) == (examples[:1], [])
    epoch = batches(examples, 5, random.Random(1))
    assert sorted(len(batch) for batch in epoch) == [2, 5, 5]
    assert sorted(map(id, (row for batch in epoch for row in batch))) == sorted(map(id, examples))


def test_held_out_nll_weighs_tokens_alike(lm):
    rows = [Example((2, 30), (40,)), Example((2, 31), (41, 42, 43))]
    apart = [held_out_nll(lm, [row], 1) for row in rows]
    assert held_out_nll(lm, rows, 2) == pytest.approx((apart[0] + 3 * apart[1]) / 4, rel=1e-4)


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
