import pytest
import torch

from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.merging import merge, stored_dtype
from steer_heal.models import load
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.rounds import shake
from tests.tiny import logits


def base(folder, dtype=torch.float32):
    made = tiny.language_model("gemma3")
    made.model.to(dtype)
    tiny.save(made, folder)
    return lambda: load(str(folder), device="cpu", dtype="float32")


def train(lm, folder, n_rounds=2):
    """Rounds whose adapters really change something; the logits with all of them on."""
    stack = AdapterStack(lm)
    for round_ in range(1, n_rounds + 1):
        stack.fresh(round_, TrainSettings(rank=4), seed=round_)
        shake(stack, round_, size=0.1)
        stack.fold()
        stack.save(round_, folder)
    found = logits(lm)
    stack.unload()
    return found


def test_merged_rounds_answer_as_the_adapters_did(tmp_path):
    fresh = base(tmp_path / "base")
    adapted = train(fresh(), tmp_path / "adapters")
    assert not torch.allclose(adapted, logits(fresh()), atol=1e-2)
    target = merge(fresh(), tmp_path / "adapters", tmp_path / "merged")
    opened = load(str(target), device="cpu")
    assert_near(logits(opened), adapted, model_rounding(opened))
    assert not (target / "adapter_config.json").exists()
    assert opened.encode_chat([{"role": "user", "content": "hi"}])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_files_number_format_is_the_bases(tmp_path):
    fresh = base(tmp_path / "base", torch.bfloat16)
    adapted = train(fresh(), tmp_path / "adapters")
    opened = load(
        str(merge(fresh(), tmp_path / "adapters", tmp_path / "merged")), device="cpu", dtype="bfloat16"
    )
    assert stored_dtype(opened) == torch.bfloat16
    tolerance = model_rounding(opened)  # that of bfloat16, which the weights are rounded to
    opened.model.float()
    assert_near(logits(opened), adapted, tolerance)


def test_only_the_first_rounds(tmp_path):
    fresh = base(tmp_path / "base")
    train(fresh(), tmp_path / "adapters", n_rounds=1)
    one = logits(load(str(merge(fresh(), tmp_path / "adapters", tmp_path / "a")), device="cpu"))
    train(fresh(), tmp_path / "adapters")
    again = merge(fresh(), tmp_path / "adapters", tmp_path / "b", rounds=1)
    assert torch.equal(logits(load(str(again), device="cpu")), one)


def test_nothing_to_merge_and_no_room_are_refused(tmp_path):
    fresh = base(tmp_path / "base")
    (tmp_path / "adapters").mkdir()
    with pytest.raises(SettingsError, match="nothing to merge"):
        merge(fresh(), tmp_path / "adapters", tmp_path / "merged")
    train(fresh(), tmp_path / "adapters", n_rounds=1)
    with pytest.raises(SettingsError, match="not empty"):
        merge(fresh(), tmp_path / "adapters", tmp_path / "base")
