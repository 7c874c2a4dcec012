"""What a run cannot use: a clear `failed` event or a refusal, the earlier rounds as they were."""

import re

import pytest

from steer_heal import heal
from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal.adapters import AdapterStack
from steer_heal.heal.measure import Measures
from steer_heal.records import Completion, Token
from steer_heal.runs.events import read
from tests import tiny
from tests.loop.test_loop import fast, model, play


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run's folder after its first round."""
    folder = tmp_path_factory.mktemp("first")
    play(folder, fast(rounds=1))
    return folder


def adapters(folder):
    found = (folder / "adapters").rglob("*")
    return {path.relative_to(folder): path.read_bytes() for path in found if path.is_file()}


def empty(row):
    return Completion("", (), True, alpha=row.alpha, prompt=row.prompt)


def same(row):
    return Completion("the same", (Token(40, "the", 0.5), Token(41, "same", 0.5)), True, prompt=row.prompt)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (empty, "Round 2 starved.*kept 0 of 8.*perplexity 8"),
        (same, "Round 2 has nothing to learn from: all 8 kept answers are the same"),
    ],
)
def test_completions_that_teach_nothing(first, monkeypatch, changed, message):
    before, earlier = adapters(first), read(first / "events.jsonl").events
    write = Measures.write

    def rewrite(self, *args, **more):
        return [changed(row) for row in write(self, *args, **more)]

    monkeypatch.setattr(Measures, "write", rewrite)
    events = list(heal.run(model(), fast(), first, start_round=1, earlier=earlier))
    assert events[-1][0] == "failed"
    assert re.search(message, events[-1][2]["message"])
    assert adapters(first) == before


def test_a_completion_longer_than_the_model_reads_is_refused_with_the_numbers(tmp_path):
    with pytest.raises(
        SettingsError, match=r"reads 512 tokens at most.*max_new_tokens to \d+ or fewer, not 511"
    ):
        next(heal.run(model(), fast(data={**fast().data.model_dump(), "max_new_tokens": 511}), tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_another_model_ends_the_run_and_stays(tmp_path):
    stack = AdapterStack(tiny.language_model("gemma3", n_layers=2))
    stack.fresh(1, TrainSettings(rank=2), seed=0)
    stack.fold()
    stack.save(1, tmp_path / "adapters")
    before, lm = adapters(tmp_path), model()
    events = list(heal.run(lm, fast(), tmp_path, start_round=1))
    assert [kind for kind, _, _ in events] == ["failed"]
    assert "cannot be put on" in events[0][2]["message"]
    assert adapters(tmp_path) == before
    assert not [name for name, _ in lm.model.named_modules() if "lora" in name]
