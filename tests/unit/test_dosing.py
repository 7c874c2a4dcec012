"""The dose controller walks down, up by one, and stops; a round's report of intervals and shifts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_heal.config import FOUNDATIONS
from steer_heal.loop.dosing import chosen, next_probe
from steer_heal.loop.report import report

LADDER = (1.0, 0.8, 0.5, 0.2)


def walk(truth, start, target=0.5, ladder=LADDER):
    """The probes in their order, and the choice."""
    survival = {}
    while (scale := next_probe(ladder, survival, start, target)) is not None:
        assert scale not in survival
        survival[scale] = truth[scale]
    return list(survival), chosen(survival, target)


@pytest.mark.parametrize(
    ("held", "start", "probes", "choice"),
    [
        (0.5, 1.0, [1.0, 0.8, 0.5], 0.5),
        (1.0, 1.0, [1.0], 1.0),
        (0.0, 0.5, [0.5, 0.2], 0.2),
        (0.8, 0.2, [0.2, 0.5], 0.5),
        (0.5, 0.5, [0.5, 0.8], 0.5),
        (1.0, 0.45, [0.5, 0.8], 0.8),
        (0.5, 0.8, [0.8, 0.5], 0.5),
    ],
)
def test_the_walk(held, start, probes, choice):
    truth = {scale: 0.9 if scale <= held else 0.1 for scale in LADDER}
    assert walk(truth, start) == (probes, choice)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 2), st.floats(0, 1), st.integers(0, 99)
)
def test_it_ends_and_chooses_what_was_probed(shares, start, target, seed):
    ladder = np.random.default_rng(seed).uniform(0, 1, len(shares)).tolist()
    truth = dict(zip(ladder, shares, strict=True))
    probes, choice = walk(truth, start, target, ladder)
    assert len(probes) <= len(ladder)
    assert choice in probes
    assert truth[choice] >= target or all(truth[scale] < target for scale in probes)


def profile(care, norms, seed=0, n=40, missing=()):
    rng, rows = np.random.default_rng(seed), []
    for index in range(n):
        p = dict.fromkeys(FOUNDATIONS, (1 - care - norms) / 5) | {"Care": care, "SocialNorms": norms}
        moved = rng.normal(0, 0.02)
        p["Care"], p["SocialNorms"] = p["Care"] + moved, p["SocialNorms"] - moved
        rows.append({"id": f"v{index}", "p": p, "mass": 0.0 if index in missing else 1.0})
    return {"per_vignette": rows}


TARGET = {"Care": 1, "SocialNorms": -1}


def test_the_report_pairs_vignettes():
    base, steered, healed = profile(0.2, 0.7), profile(0.6, 0.3), profile(0.7, 0.2)
    found = report(base, steered, healed, TARGET)
    mean, low, high = found["differences"]["healed-steered"]
    assert mean == pytest.approx(0.2)
    assert high - low < 1e-9, "the same vignettes are drawn for both, so that their spread falls out"
    low, high = found["intervals"]["base"]["Care"]
    assert 0.18 < low < high < 0.22
    assert found["retention_interval"] == pytest.approx([1.25, 1.25])
    assert found["shift_cosine"] == pytest.approx(1.0)
    assert report(base, steered, profile(0.7, 0.2, seed=5), TARGET)["differences"]["healed-base"][1] < 1.0


def test_the_report_leaves_out_what_was_not_answered_everywhere():
    some = report(profile(0.2, 0.7), profile(0.6, 0.3, missing=(1, 2)), profile(0.7, 0.2), TARGET)
    assert some["shift_cosine"] == pytest.approx(1.0, abs=1e-3)
    assert report(profile(0.2, 0.7, missing=range(40)), profile(0.6, 0.3), profile(0.7, 0.2), TARGET) == {}
    still = report(profile(0.2, 0.7), profile(0.2, 0.7), profile(0.7, 0.2), TARGET)
    assert still["retention_interval"] is None
    assert still["shift_cosine"] is None
