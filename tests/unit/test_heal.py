import math
import random

import pytest
import torch

from steer_heal import losses
from steer_heal.adapters import AdapterStack
from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal import (
    Example,
    Objective,
    OutputLayer,
    Reference,
    Teacher,
    batches,
    check_memory,
    held_out_nll,
    hidden_states,
    learning_rate,
    loss_of,
    needed_bytes,
    row_losses,
    split,
    train_round,
)
from steer_heal.records import RoundFailed, Stopped
from steer_heal.steering import steer
from tests import tiny

SETTINGS = TrainSettings(rank=2, epochs=3, batch_size=4, lr=1e-2, held_out=0.25, distil=0.0)


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


def plain_logits(lm, example):
    """Logits at the completion's positions, one row, all at once, as transformers gives them."""
    whole = lm.model(torch.tensor([example.ids])).logits[0]
    return whole[-len(example.completion_ids) - 1 : -1]


def test_hidden_states_predict_the_completions(lm):
    batch = [Example((2, 30, 31), (40, 41)), Example((2, 50), (60, 61, 62, 63))]
    logits_NV = OutputLayer(lm)(hidden_states(lm, batch))
    wanted = torch.cat([plain_logits(lm, example) for example in batch])
    torch.testing.assert_close(logits_NV, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("divergence", ["nll", "kl_fwd", "kl_rev"])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("eager", [False, True])
def test_losses_in_chunks_are_those_of_whole_logits_and_so_are_their_gradients(lm, divergence, cap, eager):
    lm.config.final_logit_softcapping = cap
    output = OutputLayer(lm)
    output.chunk, output.barrier_acts = 3, eager
    generator = torch.Generator().manual_seed(0)
    hidden_ND, reference_ND = (torch.randn(8, lm.width, generator=generator) for _ in range(2))
    labels_N, weights_N = torch.arange(8) + 40, torch.arange(8) / 8
    found = []
    for chunked in (True, False):
        student_ND = hidden_ND.clone().requires_grad_()
        with torch.enable_grad():
            if chunked:
                nll_N, d_N = row_losses(output, student_ND, labels_N, divergence, reference_ND)
            else:
                nll_N = losses.nll_rows(output(student_ND), labels_N)
                kl = losses.DIVERGENCES.get(divergence)
                d_N = kl(output(student_ND), output(reference_ND)) if kl else torch.zeros(8)
            loss = nll_N.mean() + (weights_N * d_N.square()).sum()
            loss.backward()
        found.append((nll_N.detach(), d_N.detach(), student_ND.grad))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert (found[0][1].abs().max() > 0) == (divergence != "nll")


def test_a_reverse_divergence_needs_no_logits_of_the_reference(lm):
    output, generator = OutputLayer(lm), torch.Generator().manual_seed(0)
    output.chunk = 3
    hidden_ND, reference_ND = (torch.randn(8, lm.width, generator=generator) for _ in range(2))
    labels_N, weights_N, found = torch.arange(8) + 40, torch.arange(8) / 8, []
    log_z_N = output.log_z(reference_ND)
    torch.testing.assert_close(log_z_N, output(reference_ND).logsumexp(-1))
    rows = {True: 0, False: 0}
    for known_N in (log_z_N, None):
        student_ND = hidden_ND.clone().requires_grad_()

        def count(_module, inputs, _out, known=known_N is not None):
            rows[known] += len(inputs[0])

        counted = lm.model.get_output_embeddings().register_forward_hook(count)
        with torch.enable_grad():
            nll_N, d_N = row_losses(output, student_ND, labels_N, "kl_rev", reference_ND, known_N)
            counted.remove()
            (nll_N.mean() + (weights_N * d_N).sum()).backward()
        found.append((nll_N.detach(), d_N.detach(), student_ND.grad))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert rows == {True: 8, False: 2 * 8}


@pytest.mark.parametrize(("tau", "made"), [(50.0, 1), (1e-3, 2)])
def test_the_reference_s_logits_are_made_where_the_barrier_is_near(lm, examples, tau, made, monkeypatch):
    found, rows = [], []
    for short in (True, False):
        stack = AdapterStack(lm)
        settings = SETTINGS.model_copy(update={"tau": tau, "lam": 2.0})
        stack.fresh(1, settings, seed=0)
        with torch.no_grad():
            for parameter in stack.trainable():
                parameter.add_(0.1)
        objective = Objective.of(lm, stack, settings)
        if not short:
            monkeypatch.setattr(OutputLayer, "weight_VD", None)
        loss_of(objective, examples[:4])
        head = lm.model.get_output_embeddings()
        counted = head.register_forward_hook(lambda _m, inputs, _out: rows.append(len(inputs[0])))
        loss, parts = loss_of(objective, examples[:4])
        counted.remove()
        loss.backward()
        found.append((parts, torch.cat([parameter.grad.flatten() for parameter in stack.trainable()])))
        stack.unload()
    assert rows == [16] * made + [16] * 2
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert (found[0][0]["barrier"] > 0) == (made == 2)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_an_output_layer_that_is_not_ours_is_refused(lm, monkeypatch):
    example = Example((2, 30, 31), (40, 41))
    OutputLayer(lm).check(example)
    forward = lm.model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 3
        return out

    monkeypatch.setattr(lm.model, "forward", scaled)
    with pytest.raises(SettingsError, match="logits"):
        OutputLayer(lm).check(example)


def taught(lm, stack, dose=2.0):
    generator = torch.Generator().manual_seed(1)
    directions_LD = torch.randn(lm.n_layers, lm.width, generator=generator)
    return Teacher(lm, stack, directions_LD, torch.tensor([dose, 0.0]))


def test_the_distance_from_the_teacher_is_one_untaught_and_zero_when_steered(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    teacher = taught(lm, stack)
    settings = SETTINGS.model_copy(update={"distil": 1.0})
    objective = Objective.of(lm, stack, settings, teacher)
    _, untaught = loss_of(objective, examples[:4])
    assert untaught["distil"] == pytest.approx(1.0, rel=1e-4)
    with steer(lm.blocks, teacher.directions_LD, teacher.coefficients_L[None]):
        _, steered = loss_of(objective, examples[:4])
    assert steered["distil"] == pytest.approx(0.0, abs=1e-5)
    half = Teacher(lm, stack, teacher.directions_LD, teacher.coefficients_L / 2, teacher.coefficients_L)
    _, parts = loss_of(Objective.of(lm, stack, settings, half), examples[:4])
    assert parts["distil"] == pytest.approx(0.25, rel=0.1), "its unit is the whole dose's effect"
    still = Teacher(lm, stack, teacher.directions_LD, 0 * teacher.coefficients_L, teacher.coefficients_L)
    _, parts = loss_of(Objective.of(lm, stack, settings, still), examples[:4])
    assert parts["distil"] == pytest.approx(0.0, abs=1e-5), "a dose of 0 holds the student where it is"
    with pytest.raises(ValueError, match="teacher"):
        Objective.of(lm, stack, settings)
    with pytest.raises(ValueError, match="steered"):
        taught(lm, stack, 0.0)


def test_distillation_learns_what_steering_does(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    settings = SETTINGS.model_copy(update={"distil": 1.0, "epochs": 30})
    steps = list(train_round(lm, stack, examples, settings, seed=1, teacher=taught(lm, stack)))
    assert steps[-1]["distil"] < 0.6 * steps[0]["distil"]


def test_the_spectral_penalty_keeps_the_update_small(lm, examples):
    def largest(spectral):
        stack = AdapterStack(lm)
        settings = SETTINGS.model_copy(update={"spectral": spectral, "divergence": "nll"})
        stack.fresh(1, settings, seed=0)
        list(train_round(lm, stack, examples, settings, seed=1))
        found = max(float(losses.sigma_max(*factors).detach()) for factors in stack.factors())
        stack.unload()
        return found

    assert largest(1.0) < 0.7 * largest(0.0)


def test_a_round_stops_early_at_its_best_epoch(lm, examples):
    stack = AdapterStack(lm)
    settings = SETTINGS.model_copy(update={"epochs": 40, "patience": 2, "lr": 0.05, "divergence": "nll"})
    stack.fresh(1, settings, seed=0)
    noise = [Example(row.prompt_ids, (100 + index, 150 - index)) for index, row in enumerate(examples)]
    steps = list(train_round(lm, stack, noise, settings, seed=1))
    held = [step["held_out_nll"] for step in steps if "held_out_nll" in step]
    assert len(held) < 40
    assert min(held) < min(held[-2:])
    _, held_examples = split(noise, settings.held_out, 1)
    assert held_out_nll(lm, held_examples, 4) == pytest.approx(min(held), rel=1e-4)


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


def test_a_kept_reference_is_the_recomputed_one(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    kept = Reference(lm, stack, SETTINGS)
    kept.hidden(examples[:4])
    again = kept.hidden([examples[2], examples[0]])
    fresh = Reference(lm, stack, SETTINGS).hidden([examples[2], examples[0]])
    torch.testing.assert_close(again, fresh, rtol=1e-4, atol=1e-4)
    assert Reference(lm, stack, SETTINGS.model_copy(update={"divergence": "nll"})).hidden(examples) is None


def test_reference_base_ignores_the_history(lm, examples):
    stack = AdapterStack(lm)
    base = hidden_states(lm, examples[:2]).detach()
    stack.fresh(1, SETTINGS, seed=0)
    with torch.no_grad():
        for parameter in stack.trainable():
            parameter.add_(0.1)
    stack.fold()
    student = hidden_states(lm, examples[:2]).detach()
    stack.fresh(2, SETTINGS, seed=0)
    for which, wanted in (("base", base), ("prev", student)):
        settings = SETTINGS.model_copy(update={"reference": which})
        assert torch.equal(Reference(lm, stack, settings).hidden(examples[:2]), wanted)
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
