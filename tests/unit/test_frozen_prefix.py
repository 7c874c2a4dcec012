import pytest
import torch

from steer_heal.config import TrainSettings
from steer_heal.heal import FrozenPrefix, Objective, frozen_prefix, loss_of, needed_bytes, train, train_round
from steer_heal.heal.adapters import AdapterStack
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.rounds import shake, short_examples

SETTINGS = TrainSettings(
    divergence="kl_rev", aggregate="rmse", reference="prev", lam=0.3, tau=0.2,
    likelihood=1.0, rank=2, epochs=3, batch_size=3, lr=1e-2,
)  # fmt: skip
LAYERS = [2, 3]


@pytest.fixture
def examples():
    return short_examples(9)


def student(arch="gemma3", layers=LAYERS):
    """A model with a folded round on all blocks and a fresh one on some, both moved off zero."""
    lm = tiny.language_model(arch, n_layers=5)
    stack = AdapterStack(lm)
    for round_, on in ((1, None), (2, layers)):
        stack.fresh(round_, SETTINGS, seed=round_, layers=on)
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
def test_losses_and_gradients_are_those_of_a_whole_pass(arch, reference, examples, monkeypatch):
    lm, stack = student(arch)
    settings = SETTINGS.model_copy(update={"tau": 0.0, "reference": reference})
    objective = Objective.of(lm, stack, settings)
    assert objective.frozen.first == LAYERS[0]
    for batch in (examples[:4], examples[4:7]):
        loss_of(objective, batch)
    batch = [examples[5], examples[1], examples[8]]
    ours = step(lm, stack, objective, batch)
    monkeypatch.setattr(train, "first_trained", lambda lm, stack: 0)
    whole = Objective.of(lm, stack, settings)
    assert whole.frozen.first == 0
    wanted = step(lm, stack, whole, batch)
    assert_near(ours[0], wanted[0], model_rounding(lm))
    assert ours[0]["barrier"] > 0
    assert_near(ours[1], wanted[1], model_rounding(lm, passes=2))


def test_blocks_below_are_read_once_an_example(examples):
    lm, stack = student()
    rows = []
    for layer in (0, 2):
        attention = lm.blocks[layer].self_attn
        attention.register_forward_hook(lambda _m, _i, out, layer=layer: rows.append((layer, len(out[0]))))
    list(train_round(lm, stack, examples, SETTINGS, seed=0))
    looks = 3
    assert sum(n for layer, n in rows if layer == 0) == len(examples) + looks
    assert sum(n for layer, n in rows if layer == 2) > 3 * len(examples)


def test_no_more_is_kept_than_there_is_room_for(examples, monkeypatch):
    lm, _ = student()
    monkeypatch.setattr(frozen_prefix, "KEPT_BYTES", 4 * lm.width * (examples[0].length + examples[1].length))
    kept = FrozenPrefix(lm, 2)
    with kept.entered(examples):
        pass
    assert list(kept.kept) == examples[:2]


def test_a_model_whose_blocks_hand_on_more_than_the_residual_is_read_whole():
    lm, _ = student()
    kept = []
    lm.blocks[0].self_attn.register_forward_hook(lambda _m, _i, out: kept.append(out[0]))
    lm.blocks[3].register_forward_hook(lambda _m, _i, out: out + (9.0 * kept.pop() if kept else 0.0))
    assert FrozenPrefix(lm, 2).first == 0


def test_an_error_on_the_way_leaves_the_model_as_it_was(examples):
    lm, _ = student()
    ids = torch.tensor([[2, 30, 31]])
    before = lm.model(ids).logits
    kept = FrozenPrefix(lm, 2)
    with pytest.raises(RuntimeError, match="stopped"), kept.entered(examples[:2]):
        raise RuntimeError("stopped")
    assert torch.equal(lm.model(ids).logits, before)
    assert not any("forward" in vars(block) or block._forward_pre_hooks for block in lm.blocks)


def test_memory_counts_what_is_kept():
    lm = tiny.language_model("gemma3", n_layers=5)
    asked = (SETTINGS, 3, 100, 50, 1000)
    assert needed_bytes(lm, *asked) - needed_bytes(lm, SETTINGS, 3, 100, 50, 0) > 1000 * 200 * lm.width * 4
