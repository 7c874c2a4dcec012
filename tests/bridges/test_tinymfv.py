"""With tinymfv (moral-maps) itself, skipped where it is not installed: numbers, sets, readings."""

from statistics import fmean

import numpy as np
import pytest

from steer_heal.config import FOUNDATIONS, SettingsError, heal_settings
from steer_heal.evaluate import tinymfv, vignette_sets
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.readings import gated_selectivity, signed_flips
from steer_heal.models import load
from steer_heal.records import VignetteScore
from steer_heal.runs.validate import check
from steer_heal.vectors.bridges import installed
from tests.close import assert_near, model_rounding

if not tinymfv.available():
    pytest.skip("tinymfv is not installed", allow_module_level=True)

package = installed.load(installed.TINYMFV)
NAMES = {name: "social" if name == "SocialNorms" else name.lower() for name in FOUNDATIONS}


@pytest.fixture(scope="module")
def lm():
    return load("demo", device="cpu", dtype="float32")


@pytest.mark.parametrize("think", [1, 2, 64])
def test_the_same_frame_gives_its_numbers(lm, think):
    """Per vignette and unpadded: score, p, allowed mass and prefill NLL."""
    theirs = tinymfv.evaluate(lm, limit=2, think_tokens=think, batch_size=1)
    ours = evaluate(lm, tinymfv.vignettes()[:2], tinymfv.frame(think))[0]
    for mine, other in zip(ours.per_vignette, theirs.per_vignette, strict=True):
        assert (mine.id, mine.foundation) == (other.id, other.foundation)
        nats = max(map(abs, other.score.values()))
        assert_near(mine.score, other.score, model_rounding(lm))
        assert_near(mine.p, other.p, model_rounding(lm), nats)
        assert_near(mine.mass, other.mass, model_rounding(lm), nats)
        assert_near(mine.prefill_nll, other.prefill_nll, model_rounding(lm), nats)


def test_ours_does_not_depend_on_the_batch(lm):
    vignettes = tinymfv.vignettes()[:3]
    whole = evaluate(lm, vignettes, tinymfv.frame(2))[0]
    for vignette, row in zip(vignettes, whole.per_vignette, strict=True):
        alone = evaluate(lm, [vignette], tinymfv.frame(2))[0].per_vignette[0]
        assert_near(row.score, alone.score, model_rounding(lm))


def test_evaluating_leaves_the_tokenizer_as_it_was(lm):
    lm.tokenizer.padding_side = "right"
    tinymfv.evaluate(lm, limit=1, think_tokens=1)
    assert lm.tokenizer.padding_side == "right"


def test_its_sets_are_offered_from_both_sides(lm):
    for name in tinymfv.SETS:
        for condition in ("other_violate", "self_violate"):
            rows = tinymfv.vignettes(name, condition)
            assert len(rows) > 50
            assert {row.foundation for row in rows} == set(FOUNDATIONS)
            assert {row.condition for row in rows} == {condition}
    with pytest.raises(SettingsError, match="classic, scifi, ai-actor"):
        tinymfv.vignettes("modern")
    with pytest.raises(SettingsError, match="think budget"):
        tinymfv.evaluate(lm, think_tokens=0)


def test_what_it_cannot_score_counts_as_no_mass():
    nan, row = float("nan"), {"id": "x", "foundation_coarse": "Care", "nll_prefill": float("nan")}
    bad = row | {"score": np.full(7, nan), "p": np.full(7, nan), "pmass_allowed": nan}
    good = row | {"score": np.zeros(7), "p": np.full(7, 1 / 7), "pmass_allowed": 0.8}
    made = tinymfv.profile([tinymfv.scored(bad), tinymfv.scored(good)])
    assert (made.n_invalid, made.n_vignettes, made.coherence) == (1, 2, 0.4)
    assert made.p == pytest.approx(dict.fromkeys(FOUNDATIONS, 1 / 7))


def test_the_readings_are_its_own():
    """Point values and the bootstrap's draws, on the same stored scores."""
    random, target = np.random.default_rng(1), {"Care": 1, "SocialNorms": -1}

    def arm(shift):
        scores = random.normal(size=(20, 7)) + shift
        return [
            VignetteScore(
                str(n), "Care", dict(zip(FOUNDATIONS, row, strict=True)), {}, 0.8 + 0.01 * shift, 0, 0
            )
            for n, row in enumerate(scores)
        ]

    toward, away = arm(0.0), arm(1.0)
    named = [
        package.clr_per_row(
            {"per_row": [{"id": r.id, "condition": "c", "score": list(r.score.values())} for r in rows]}
        )
        for rows in (toward, away)
    ]
    intent = {NAMES[name]: sign for name, sign in target.items()}
    mass = [fmean(row.mass for row in rows) for rows in (toward, away)]
    theirs = package.gated_selectivity(
        *named, intent, pmass_pos=mass[0], pmass_neg=mass[1], pmass_base=0.9, n_boot=200
    )
    ours = gated_selectivity(toward, away, target, base_mass=0.9)
    assert (ours.value, ours.low, ours.high) == pytest.approx(
        (theirs["sel_gated"], theirs["ci_lo"], theirs["ci_hi"])
    )
    assert signed_flips(toward, away, target).value == pytest.approx(
        package.si_flips(*named, intent)["si_flips"]
    )


def test_its_sets_are_vignettes_by_name_and_a_run_may_ask_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = vignette_sets.vignettes("scifi", condition="self_violate", limit=14)
    assert (len(rows), {row.condition for row in rows}) == (14, {"self_violate"})
    assert {row.foundation for row in rows} == set(FOUNDATIONS)
    settings = heal_settings("quick", model="demo", evaluate={"vignettes": "classic", "n_vignettes": 7})
    assert check(settings, files_in=tmp_path) == settings
