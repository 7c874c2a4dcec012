"""The forced choice through our own blocks against transformers' own forward: every number of every row."""

from dataclasses import replace

import pytest
import torch

from steer_heal import data, forward
from steer_heal.config import FOUNDATIONS
from steer_heal.evaluate.choice import evaluate
from steer_heal.records import Vignette
from steer_heal.vectors.steering import coefficients
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.unit.test_evaluate import FRAME, LONG

FRAMES = {
    "one token a word": FRAME,
    "words of several tokens": LONG,
    "nothing in common": replace(FRAME, question="{options}? {text}", orders=("forward",)),
    "tinymfv without a thought": replace(data.frame("tinymfv"), think_budget=0),
    "tinymfv": replace(data.frame("tinymfv"), think_budget=6),
}
TEXTS = ("You see a man.", "You see a man take what a friend lent to him for a day.", "You see it.")


CASES = [("gemma3", name) for name in FRAMES] + [
    (arch, name) for arch in ("llama", "qwen3") for name in ("words of several tokens", "tinymfv")
]


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_our_own_blocks_give_transformers_numbers(arch, name, monkeypatch):
    """Vignettes of unlike length, sliding windows, three doses at once, batches that do not come out even."""
    lm, frame = tiny.shared(arch), FRAMES[name]
    vector = tiny.vector(lm, seed=1)
    doses_KL = torch.cat([coefficients(lm.n_layers, (1, 2), c) for c in (0.0, 1.7, -3.4)])
    vignettes = [Vignette(f"v{i}", FOUNDATIONS[i], text, "other_violate") for i, text in enumerate(TEXTS)]

    def measured(batch_size):
        asked = {"vector": vector, "coefficients_RL": doses_KL, "batch_size": batch_size}
        return [row for one in evaluate(lm, vignettes, frame, **asked) for row in one.per_vignette]

    found, in_small_batches = measured(32), measured(4)
    monkeypatch.setattr(forward, "is_known", lambda _lm: False)
    for row, small, expected in zip(found, in_small_batches, measured(32), strict=True):
        for one in (row, small):
            assert_near(one.score, expected.score, model_rounding(lm))
            nats = max(map(abs, expected.score.values()))
            assert_near(one.mass, expected.mass, model_rounding(lm), nats)
            assert_near(one.prefill_nll, expected.prefill_nll, model_rounding(lm), nats)
    assert found[0].score != pytest.approx(found[3].score, abs=1e-3)
