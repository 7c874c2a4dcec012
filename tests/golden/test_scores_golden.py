"""Scores of cloze and choice against transformers' own forward: every number of every row."""

from dataclasses import replace
from itertools import combinations
from statistics import fmean

import pytest
import torch

from steer_heal import data, forward
from steer_heal.config import FOUNDATIONS
from steer_heal.data import checked_trait, own_axis
from steer_heal.data.own_traits import of_poles
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.questions import answer_ids
from steer_heal.forward import ours
from steer_heal.records import Vignette
from steer_heal.vectors.steering import coefficients, steer
from tests import tiny
from tests.close import assert_near, model_rounding
from tests.unit.test_cloze import CLOZE, doses
from tests.unit.test_evaluate import FRAME, LONG
from tests.unit.test_evaluate import by_hand as alone

BEGUN = "Late on a cold evening, "
"""Longer than `prefix_batch.MIN_TRUNK`: read once for the vignettes that are read together."""
TEXTS = ("you see a man.", "you see a man take what a friend lent to him for a day.", "you see it.")
SAID = [["No.", "I see it, but no."], ["Do it now.", "Do it, please."]]
OWN = own_axis(checked_trait("a trait", of_poles("blunt", "blunt", "tactful", statements=SAID)))
VIGNETTES = [Vignette(f"v{i}", FOUNDATIONS[i], BEGUN + text, "other_violate") for i, text in enumerate(TEXTS)]


def by_hand(lm, frame, vector, dose_L):
    """(wordings, vignettes, statements): the log-prob of every statement, summed over its tokens, or of one
    of a trait's own their mean."""
    with steer(lm.blocks, vector.steers, dose_L[None]):
        of_vignettes = [[alone(lm, row, "forward", one) for row in VIGNETTES] for one in frame.wordings]
    lengths = [[[len(ids) for ids in answer_ids(lm, one)]] for one in frame.wordings]
    summed = torch.tensor(of_vignettes)
    return summed / torch.tensor(lengths) if frame is OWN else summed


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
@pytest.mark.parametrize("frame", [CLOZE, OWN], ids=["foundations", "own axis"])
def test_every_score_is_that_of_a_plain_pass(arch, plain, frame, monkeypatch):
    lm = tiny.shared(arch)
    asked = doses(lm, 0.0, 1.7, -3.4)
    vector, rows_KL = asked["vector"], asked["coefficients_RL"]
    wanted = [by_hand(lm, frame, vector, dose_L) for dose_L in rows_KL]
    common = wanted[0].mean(dim=1, keepdim=True)
    monkeypatch.setattr(ours, "TOGETHER", 2)
    if plain:
        monkeypatch.setattr(forward, "is_known", lambda _lm: False)
    base = evaluate(lm, VIGNETTES, frame, batch_size=2)[0]
    assert [list(row) for row in base.calibration] == [
        pytest.approx(row, abs=1e-4) for row in common[:, 0].tolist()
    ]
    found = evaluate(lm, VIGNETTES, frame, calibrated=base.calibration, batch_size=4, **asked)
    for profile, logp in zip(found, wanted, strict=True):
        each = (logp - common).softmax(-1)
        mean = (logp - common).mean(dim=0)
        for row, score, p in zip(profile.per_vignette, mean, mean.softmax(-1), strict=True):
            assert list(row.score.values()) == pytest.approx(score.tolist(), abs=1e-4)
            assert list(row.p.values()) == pytest.approx(p.tolist(), abs=1e-4)
        tvs = [0.5 * float((a - b).abs().sum(-1).mean()) for a, b in combinations(each, 2)]
        assert profile.order_tv == pytest.approx(fmean(tvs), abs=1e-4)
        first = frame.names[0]
        assert profile.p[first] == pytest.approx(fmean(row.p[first] for row in profile.per_vignette))
        assert sum(profile.p.values()) == pytest.approx(1.0)


FRAMES = {
    "one token a word": FRAME,
    "words of several tokens": LONG,
    "nothing in common": replace(FRAME, question="{options}? {text}", orders=("forward",)),
    "tinymfv without a thought": replace(data.frame("tinymfv"), think_budget=0),
    "tinymfv": replace(data.frame("tinymfv"), think_budget=6),
}
CASES = [("gemma3", name) for name in FRAMES] + [
    (arch, name) for arch in ("llama", "qwen3") for name in ("words of several tokens", "tinymfv")
]


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_our_own_blocks_give_transformers_numbers(arch, name, monkeypatch):
    """Vignettes of unlike length, sliding windows, three doses at once, batches that do not come out even."""
    lm, frame = tiny.shared(arch), FRAMES[name]
    vector = tiny.vector(lm, seed=1)
    doses_KL = torch.cat([coefficients(lm.n_layers, (1, 2), c) for c in (0.0, 1.7, -3.4)])

    def measured(batch_size):
        asked = {"vector": vector, "coefficients_RL": doses_KL, "batch_size": batch_size}
        return [row for one in evaluate(lm, VIGNETTES, frame, **asked) for row in one.per_vignette]

    found, in_small_batches = measured(32), measured(4)
    monkeypatch.setattr(forward, "is_known", lambda _lm: False)
    for row, small, expected in zip(found, in_small_batches, measured(32), strict=True):
        for one in (row, small):
            assert_near(one.score, expected.score, model_rounding(lm))
            nats = max(map(abs, expected.score.values()))
            assert_near(one.mass, expected.mass, model_rounding(lm), nats)
            assert_near(one.prefill_nll, expected.prefill_nll, model_rounding(lm), nats)
    assert found[0].score != pytest.approx(found[3].score, abs=1e-3)
