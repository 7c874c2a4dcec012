"""What a round's loss is made of: logits in chunks, the reference, the teacher."""

import pytest
import torch

from steer_heal import losses
from steer_heal.adapters import AdapterStack
from steer_heal.config import SettingsError
from steer_heal.heal import (
    Example,
    Objective,
    OutputLayer,
    Reference,
    Teacher,
    held_out_nll,
    hidden_states,
    loss_of,
    row_losses,
)
from steer_heal.steering import steer
from tests import tiny
from tests.close import assert_near, model_rounding, rounding
from tests.rounds import SETTINGS, taught


@pytest.fixture
def lm():
    return tiny.language_model("gemma3", n_layers=2)


def plain_logits(lm, example):
    """Logits at the completion's positions, one row, all at once, as transformers gives them."""
    whole = lm.model(torch.tensor([example.ids])).logits[0]
    return whole[-len(example.completion_ids) - 1 : -1]


def test_hidden_states_predict_the_completions(lm):
    batch = [Example((2, 30, 31), (40, 41)), Example((2, 50), (60, 61, 62, 63))]
    logits_NV = OutputLayer(lm)(hidden_states(lm, batch))
    wanted = torch.cat([plain_logits(lm, example) for example in batch])
    assert_near(logits_NV, wanted, model_rounding(lm))


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
        assert_near(ours, wanted, rounding(lm.width + lm.config.vocab_size), whole=output(hidden_ND))
    assert (found[0][1].abs().max() > 0) == (divergence != "nll")


def test_a_reverse_divergence_needs_no_logits_of_the_reference(lm):
    output, generator = OutputLayer(lm), torch.Generator().manual_seed(0)
    output.chunk = 3
    hidden_ND, reference_ND = (torch.randn(8, lm.width, generator=generator) for _ in range(2))
    labels_N, weights_N, found = torch.arange(8) + 40, torch.arange(8) / 8, []
    log_z_N = output.log_z(reference_ND)
    assert_near(log_z_N, output(reference_ND).logsumexp(-1), rounding(lm.width + lm.config.vocab_size))
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
        assert_near(ours, wanted, rounding(lm.width + lm.config.vocab_size), whole=output(hidden_ND))
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
    assert_near(found[0][0], found[1][0], model_rounding(lm))
    assert (found[0][0]["barrier"] > 0) == (made == 2)
    assert_near(found[0][1], found[1][1], model_rounding(lm, passes=2))


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


def test_the_distance_from_the_teacher_is_one_untaught_and_zero_when_steered(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    teacher = taught(lm, stack)
    settings = SETTINGS.model_copy(update={"distil": 1.0})
    objective = Objective.of(lm, stack, settings, teacher)
    _, untaught = loss_of(objective, examples[:4])
    assert_near(untaught["distil"], 1.0, model_rounding(lm))
    with steer(lm.blocks, teacher.directions_LD, teacher.coefficients_L[None]):
        _, steered = loss_of(objective, examples[:4])
    assert_near(steered["distil"], 0.0, model_rounding(lm), whole=1.0)
    half = Teacher(lm, stack, teacher.directions_LD, teacher.coefficients_L / 2, teacher.coefficients_L)
    _, parts = loss_of(Objective.of(lm, stack, settings, half), examples[:4])
    assert parts["distil"] == pytest.approx(0.25, rel=0.1), "its unit is the whole dose's effect"
    still = Teacher(lm, stack, teacher.directions_LD, 0 * teacher.coefficients_L, teacher.coefficients_L)
    _, parts = loss_of(Objective.of(lm, stack, settings, still), examples[:4])
    assert_near(parts["distil"], 0.0, model_rounding(lm), whole=1.0)  # a dose of 0 holds the student
    with pytest.raises(ValueError, match="teacher"):
        Objective.of(lm, stack, settings)
    with pytest.raises(ValueError, match="steered"):
        taught(lm, stack, 0.0)


def test_a_kept_reference_is_the_recomputed_one(lm, examples):
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    kept = Reference(lm, stack, SETTINGS)
    kept.hidden(examples[:4])
    again = kept.hidden([examples[2], examples[0]])
    fresh = Reference(lm, stack, SETTINGS).hidden([examples[2], examples[0]])
    assert_near(again, fresh, model_rounding(lm))
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


def test_held_out_nll_weighs_tokens_alike(lm):
    rows = [Example((2, 30), (40,)), Example((2, 31), (41, 42, 43))]
    apart = [held_out_nll(lm, [row], 1) for row in rows]
    assert_near(held_out_nll(lm, rows, 2), (apart[0] + 3 * apart[1]) / 4, model_rounding(lm))
