"""Training one round: what its loss is made of; it learns, stops, repeats itself, and fails with a word."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy, relu

from steer_heal.config import SettingsError, TrainSettings, heal_settings
from steer_heal.heal import (
    Example,
    FrozenPrefix,
    Objective,
    OutputLayer,
    Reference,
    Targets,
    batch_loss,
    batches,
    check_memory,
    frozen_prefix,
    held_out_nll,
    hidden_states,
    learning_rate,
    loss_of,
    losses,
    needed_bytes,
    row_losses,
    split,
    train,
    train_round,
)
from steer_heal.heal.adapters import AdapterStack
from steer_heal.records import RoundFailed, Stopped
from steer_heal.vectors.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding, rounding
from tests.rounds import SETTINGS, healed, shake, short_examples, trained


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
    assert [len(batch) for batch in epoch] == [4, 4, 4]
    assert sorted(map(id, (row for batch in epoch for row in batch))) == sorted(map(id, examples))


@pytest.mark.parametrize(("steered", "dropped", "plain"), [(9, 21, 20), (0, 0, 17), (3, 1, 40), (30, 0, 4)])
def test_each_step_learns_every_kind_of_answer_in_proportion(steered, dropped, plain):
    kinds = [((True, True), steered), ((True, False), dropped), ((False, False), plain)]
    rows = [Example((2, number), (3,), *kind) for kind, count in kinds for number in range(count)]
    epoch = batches(rows, 8, random.Random(0))
    assert sorted(map(id, (row for batch in epoch for row in batch))) == sorted(map(id, rows))
    for kind, count in kinds:
        held = [sum((row.steered, row.likely) == kind for row in batch) for batch in epoch]
        assert max(held) - min(held) <= 1
        assert min(held) == count // len(epoch)
    assert max(map(len, epoch)) <= 8


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


def test_hidden_states_predict_the_completions(lm):
    batch = [Example((2, 30, 31), (40, 41)), Example((2, 50), (60, 61, 62, 63))]
    logits_NV = OutputLayer(lm)(hidden_states(lm, batch))
    wanted = [tiny.logits(lm, row.ids)[0, -len(row.completion_ids) - 1 : -1] for row in batch]
    assert_near(logits_NV, torch.cat(wanted), model_rounding(lm))


@pytest.mark.parametrize("divergence", ["nll", "kl_fwd", "kl_rev"])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("temperature", "tau"), [(1.0, 0.0), (0.7, 0.0), (0.7, 0.1), (0.7, 9.0)])
def test_the_loss_in_chunks_is_that_of_whole_logits_and_so_is_its_gradient(
    lm, divergence, cap, temperature, tau
):
    lm.config.final_logit_softcapping = cap
    output = OutputLayer(lm)
    output.chunk = 3
    generator = torch.Generator().manual_seed(0)
    hidden_ND, reference_ND = (torch.randn(8, lm.width, generator=generator) for _ in range(2))
    labels_N, weights_N = torch.arange(8) + 40, torch.arange(8) % 2 * 0.3
    targets = Targets(output, labels_N, divergence, reference_ND, temperature)
    ours_ND, theirs_ND = (hidden_ND.clone().requires_grad_() for _ in range(2))
    with torch.enable_grad():
        loss, nll_N, d_N = batch_loss(targets, ours_ND, weights_N, 0.6, tau)
        (2.0 * loss).backward()

        logits_NV = output(theirs_ND)
        wanted_nll_N = cross_entropy(logits_NV / temperature, labels_N, reduction="none")
        student, reference = Categorical(logits=logits_NV), Categorical(logits=output(reference_ND))
        pair = (reference, student) if divergence == "kl_fwd" else (student, reference)
        wanted_d_N = torch.zeros(8) if divergence == "nll" else kl_divergence(*pair)
        wanted = (weights_N * wanted_nll_N).mean() + 0.6 * relu(wanted_d_N.mean() - tau)
        (2.0 * wanted).backward()
    found = (loss, nll_N, d_N, ours_ND.grad)
    expected = (wanted, wanted_nll_N, wanted_d_N, theirs_ND.grad)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, rounding(lm.width + lm.config.vocab_size), whole=output(hidden_ND))
    for one, other in zip(row_losses(targets, hidden_ND), found[1:], strict=False):
        assert torch.equal(one, other)
    assert (d_N.mean() > tau) == (divergence != "nll" and tau < 9.0)


def test_in_bfloat16_what_goes_through_a_lora_is_not_kept_in_float32_and_gradients_are_as_near_as_it_can(lm):
    batch, gradients, kept = short_examples(3), {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.shape[-1], tensor.dtype))
        return tensor

    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.language_model("gemma3", n_layers=2)
        model.model.to(torch.bfloat16).to(dtype)  # the same weights
        stack = AdapterStack(model)
        stack.fresh(1, SETTINGS, seed=0)
        shake(stack)
        kept.clear()
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = loss_of(Objective.of(model, stack, SETTINGS), batch)
        loss.backward()
        gradients[dtype] = torch.cat([one.grad.flatten() for one in stack.trainable()])
    inner = lm.config.intermediate_size
    assert (inner, torch.bfloat16) in kept
    assert (inner, torch.float32) not in kept
    assert gradients[torch.bfloat16].dtype == torch.float32
    assert_near(*reversed(gradients.values()), model_rounding(model, passes=2))


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


def test_reference_base_ignores_the_history(lm, examples):
    base = hidden_states(lm, examples[:2]).detach()
    stack = healed(lm, size=0.1)
    student = hidden_states(lm, examples[:2]).detach()
    stack.fresh(2, SETTINGS, seed=0)
    for which, wanted in (("base", base), ("prev", student)):
        settings = SETTINGS.model_copy(update={"reference": which})
        assert torch.equal(Reference(lm, stack, settings).hidden(examples[:2]), wanted)
    assert not torch.equal(base, student)


def test_held_out_nll_weighs_tokens_alike(lm):
    rows = [Example((2, 30), (40,)), Example((2, 31), (41, 42, 43))]
    stack = AdapterStack(lm)
    stack.fresh(1, SETTINGS, seed=0)
    objective = Objective.of(lm, stack, SETTINGS)
    apart = [held_out_nll(objective, [row]) for row in rows]
    assert_near(held_out_nll(objective, rows), (apart[0] + 3 * apart[1]) / 4, model_rounding(lm))


def test_the_writer_of_a_steered_answer_is_the_steered_history_and_of_a_plain_one_the_base(lm, examples):
    directions_LD, matrix_BL = torch.ones(lm.n_layers, lm.width), coefficients(lm.n_layers, [1], 0.5)
    asked, plain = examples[0], replace(examples[1], steered=False)
    base = hidden_states(lm, [plain]).detach()
    stack = healed(lm, size=0.1)
    with steer(lm.blocks, directions_LD, matrix_BL):
        steered = hidden_states(lm, [asked]).detach()
    stack.fresh(2, SETTINGS, seed=0)
    settings = SETTINGS.model_copy(update={"reference": "writer"})
    how = lambda _batch: steer(lm.blocks, directions_LD, matrix_BL)  # noqa: E731
    found = Reference(lm, stack, settings, steer=how).hidden([plain, asked])
    assert torch.equal(found, torch.cat([base, steered]))
    assert not torch.equal(steered, Reference(lm, stack, settings).hidden([asked]))


def test_a_loss_of_nothing_is_refused():
    for nothing in ({"divergence": "nll", "likelihood": 0}, {"lam": 0, "likelihood": 0}):
        with pytest.raises(SettingsError, match="nothing to learn"):
            heal_settings(model="demo", train=nothing)


def test_a_student_that_imitates_comes_nearer_to_the_writer(lm, examples):
    directions_LD, matrix_BL = torch.ones(lm.n_layers, lm.width), coefficients(lm.n_layers, [1], 0.5)
    settings = TrainSettings(rank=4, lr=1e-2, epochs=4, likelihood=0.0)
    stack = AdapterStack(lm)
    stack.fresh(1, settings, seed=0)
    how = lambda _batch: steer(lm.blocks, directions_LD, matrix_BL)  # noqa: E731
    steps = list(train_round(lm, stack, examples[:8], settings, seed=0, steer=how))
    assert all(step["loss"] == step["divergence"] for step in steps)
    assert 0 < steps[-1]["divergence"] < 0.5 * steps[0]["divergence"]


def test_only_the_answers_that_are_to_be_given_are_made_likelier(lm, examples):
    settings = TrainSettings(reference="base", likelihood=0.3)
    stack = AdapterStack(lm)
    stack.fresh(1, settings, seed=0)
    shake(stack, size=0.1)
    objective = Objective.of(lm, stack, settings)
    both = [examples[0], replace(examples[1], likely=False)]
    loss, parts = loss_of(objective, both)
    _, given = loss_of(objective, both[:1])
    n_given, n = (sum(len(row.completion_ids) for row in rows) for rows in (both[:1], both))
    assert_near(loss, parts["divergence"] + 0.3 * given["nll"] * n_given / n, model_rounding(lm))


def test_the_barrier_is_free_up_to_tau():
    for value, wanted in ((0.2, 0.0), (0.5, 0.0), (1.5, 0.3)):
        d = torch.tensor(value, requires_grad=True)
        loss = losses.barrier(d, 0.3, 0.5)
        loss.backward()
        assert loss.item() == pytest.approx(wanted)
        assert d.grad.item() == pytest.approx(0.3 if value > 0.5 else 0.0)


KEEPING = TrainSettings(
    divergence="kl_rev", reference="prev", lam=0.3, tau=0.2,
    likelihood=1.0, rank=2, epochs=3, batch_size=3, lr=1e-2,
)  # fmt: skip
LAYERS, NINE = [2, 3], short_examples(9)


def student(arch="gemma3", layers=LAYERS):
    """A model with a folded round on all blocks and a fresh one on some, both moved off zero."""
    lm = tiny.language_model(arch, n_layers=5)
    stack = AdapterStack(lm)
    for round_, on in ((1, None), (2, layers)):
        stack.fresh(round_, KEEPING, seed=round_, layers=on)
        shake(stack, round_, 0.03)
        if round_ == 1:
            stack.fold()
    return lm, stack


def step(lm, stack, objective, batch):
    lm.model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        loss, parts = loss_of(objective, batch)
        loss.backward()
    return parts, torch.cat([parameter.grad.flatten() for parameter in stack.trainable()])


@pytest.mark.parametrize("reference", ["prev", "base"])
def test_losses_and_gradients_are_those_of_a_whole_pass(arch, reference, monkeypatch):
    lm, stack = student(arch)
    settings = KEEPING.model_copy(update={"tau": 0.0, "reference": reference})
    objective = Objective.of(lm, stack, settings)
    assert objective.frozen.first == LAYERS[0]
    for batch in (NINE[:4], NINE[4:7]):
        loss_of(objective, batch)
    batch = [NINE[5], NINE[1], NINE[8]]
    ours = step(lm, stack, objective, batch)
    monkeypatch.setattr(train, "first_trained", lambda lm, stack: 0)
    whole = Objective.of(lm, stack, settings)
    assert whole.frozen.first == 0
    wanted = step(lm, stack, whole, batch)
    assert_near(ours[0], wanted[0], model_rounding(lm))
    assert ours[0]["barrier"] > 0
    assert_near(ours[1], wanted[1], model_rounding(lm, passes=2))


def test_blocks_below_are_read_once_an_example():
    lm, stack = student()
    rows = []
    for layer in (0, 2):
        attention = lm.blocks[layer].self_attn
        attention.register_forward_hook(lambda _m, _i, out, layer=layer: rows.append((layer, len(out[0]))))
    list(train_round(lm, stack, NINE, KEEPING, seed=0))
    looks = 3
    assert sum(n for layer, n in rows if layer == 0) == len(NINE) + looks
    assert sum(n for layer, n in rows if layer == 2) > 3 * len(NINE)


def test_no_more_is_kept_than_there_is_room_for(monkeypatch):
    lm, _ = student()
    monkeypatch.setattr(frozen_prefix, "KEPT_BYTES", 4 * lm.width * (len(NINE[0].ids) + len(NINE[1].ids)))
    kept = FrozenPrefix(lm, 2)
    with kept.entered(NINE):
        pass
    assert list(kept.kept) == NINE[:2]


def test_a_model_whose_blocks_hand_on_more_than_the_residual_is_read_whole():
    lm, _ = student()
    kept = []
    lm.blocks[0].self_attn.register_forward_hook(lambda _m, _i, out: kept.append(out[0]))
    lm.blocks[3].register_forward_hook(lambda _m, _i, out: out + (9.0 * kept.pop() if kept else 0.0))
    assert FrozenPrefix(lm, 2).first == 0


def test_an_error_on_the_way_leaves_the_model_as_it_was():
    lm, _ = student()
    ids = torch.tensor([[2, 30, 31]])
    before = lm.model(ids).logits
    kept = FrozenPrefix(lm, 2)
    with pytest.raises(RuntimeError, match="stopped"), kept.entered(NINE[:2]):
        raise RuntimeError("stopped")
    assert torch.equal(lm.model(ids).logits, before)
    assert not any("forward" in vars(block) or block._forward_pre_hooks for block in lm.blocks)


def test_memory_counts_what_is_kept():
    lm = tiny.language_model("gemma3", n_layers=5)
    asked = (KEEPING, 3, 100, 50, 1000)
    assert needed_bytes(lm, *asked) - needed_bytes(lm, KEEPING, 3, 100, 50, 0) > 1000 * 200 * lm.width * 4
