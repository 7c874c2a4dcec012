from dataclasses import replace

import pytest
import torch

from steer_heal import data, dose, instrument
from steer_heal.config import FOUNDATIONS, DoseRequest, SampleSettings, SettingsError, build
from steer_heal.models import user
from steer_heal.records import Agreement, DoseRow, Profile, Stopped, trait_shift
from steer_heal.steering import coefficients
from steer_heal.vector import SteeringVector
from tests import tiny
from tests.close import assert_near, log_p, model_rounding, nats
from tests.unit.test_cloze import CLOZE

C_STAR = 8.0


@pytest.fixture
def lm():
    return tiny.shared("gemma3")


@pytest.fixture
def setting(lm):
    """vector, vignettes, frame, prompts"""
    generator = torch.Generator().manual_seed(2)
    directions_LD = torch.nn.functional.normalize(
        torch.randn(lm.n_layers, lm.width, generator=generator), dim=1
    )
    ones_L = torch.ones(lm.n_layers)
    prompts = [lm.encode_chat([user(text)]) for text in ("Hello there.", "What is it?")]
    return (
        SteeringVector(directions_LD, ones_L, ones_L, {}),
        lm.material.vignettes(limit=2),
        data.frame("choice"),
        prompts,
    )


def request(**more):
    sample = build(SampleSettings, max_new_tokens=6, seed=3)
    return build(DoseRequest, **{"alphas": (0.0, 1.0, -2.0), "band": (0.3, 0.7), "sample": sample, **more})


def sweep(lm, setting, asked, **more):
    vector, *rest = setting
    return list(dose.sweep(lm, vector, C_STAR, asked, *rest, **more))


def row(alpha, coherence):
    return DoseRow(alpha, (0.4, 0.6), None, coherence, None, None, None, None, "coherent")


def test_a_row_for_each_alpha_in_the_order_asked(lm, setting):
    shares = []
    rows = sweep(lm, setting, request(), progress=shares.append)
    assert [row.alpha for row in rows] == [0.0, 1.0, -2.0]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    zero, one, _ = rows
    size = nats(lm, setting[3][0])
    assert_near(zero.trait_shift, 0.0, model_rounding(lm), size)
    assert_near(zero.kl_p95, 0.0, model_rounding(lm), size)
    assert_near(zero.perplexity_ratio, 1.0, model_rounding(lm), size)
    assert one.kl_p95 > 0.01


def test_profiles_are_those_of_the_steered_model(lm, setting):
    vector, vignettes, frame, _ = setting
    one = sweep(lm, setting, request(alphas=(1.0,)))[0]
    steered_KL = coefficients(lm.n_layers, (1, 2), C_STAR)
    wanted, base = (
        instrument.evaluate(lm, vignettes, frame, vector=vector, coefficients_KL=c)[0]
        for c in (steered_KL, torch.zeros_like(steered_KL))
    )
    assert_near(one.profile.p, wanted.p, model_rounding(lm), log_p(wanted))
    shift = trait_shift(wanted.p, base.p, data.trait("care_over_authority").target)
    assert_near(one.trait_shift, shift, model_rounding(lm), log_p(wanted))


def test_without_prompts_there_is_no_text(lm, setting):
    found = sweep(lm, (*setting[:3], []), request(alphas=(1.0,)))[0]
    assert (found.perplexity, found.repetition, found.kl_p95, found.sample) == (None, None, None, "")


@pytest.mark.parametrize(("fit", "batches"), [(48, [1, 9]), (4, [1, 4, 4, 1])])
def test_doses_go_through_the_same_passes_as_far_as_memory_allows(lm, setting, monkeypatch, fit, batches):
    written, shares = [], []
    real = dose.complete

    def complete(lm, rows, *args, **named):
        written.append(len(rows))
        return real(lm, rows, *args, **named)

    monkeypatch.setattr(dose, "complete", complete)
    monkeypatch.setattr(dose, "rows_that_fit", lambda lm, n_tokens, most: min(most, fit))
    vector, vignettes, frame, prompts = setting
    asked = request(alphas=tuple(float(i) for i in range(9)))
    found = list(dose.sweep(lm, vector, C_STAR, asked, vignettes, frame, prompts[:1], progress=shares.append))
    assert [row.alpha for row in found] == list(asked.alphas)
    assert written == batches
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(set(shares)) > 2 * len(batches)


def test_breaks_are_the_first_alphas_below_each_mark():
    rows = [row(a, c) for a, c in ((0.0, 0.9), (4.0, 0.3), (-8.0, 0.0), (2.0, 0.84), (3.0, 0.8), (1.0, 0.89))]
    assert dose.breaks(rows, 0.9) == {0.95: 2.0, 0.85: 4.0}
    assert dose.breaks(rows[:1], 0.9) == {}
    assert dose.breaks([row(1.0, float("nan"))], 0.9) == {0.95: 1.0, 0.85: 1.0}


def test_refining_closes_in_on_a_break(lm, setting, monkeypatch):
    """Coherence is made a known curve: it falls below 0.95 at 1.312 and below 0.85 at 3.7."""

    def curve(alpha):
        return 1.0 if alpha < 1.312 else 0.9 if alpha < 3.7 else 0.5

    real = dose._Measure._profiles

    def profiles(self, alphas):
        return [
            type(found)(found.p, curve(alpha), found.n_vignettes)
            for alpha, found in zip(alphas, real(self, alphas), strict=True)
        ]

    monkeypatch.setattr(dose._Measure, "_profiles", profiles)
    monkeypatch.setattr(dose, "_base_profile", lambda *_: Profile(dict.fromkeys(FOUNDATIONS, 0.1), 1.0, 2))
    rows = sweep(lm, setting, request(alphas=(0.0, 1.0, 2.0, 6.0), refine=True))
    assert [row.alpha for row in rows[:4]] == [0.0, 1.0, 2.0, 6.0]
    for mark, wanted in dose.breaks(rows, 1.0).items():
        exact = 1.312 if mark == 0.95 else 3.7
        assert exact <= wanted <= exact + dose.RESOLUTION
        assert any(exact - dose.RESOLUTION <= row.alpha < exact for row in rows[4:])
    assert all(row.perplexity is not None for row in rows)
    assert rows[-1].verdict == "broken"


def test_a_grid_has_a_row_for_every_band_and_alpha(lm, setting):
    vector, vignettes, frame, _ = setting
    bands = dose.grid_bands(lm.n_layers)
    assert len(bands) == 4 + 2
    asked, seen = request(alphas=(-1.0, 1.0)), []

    def c_star_of(layers):
        seen.append(layers)
        return 4.0

    rows = list(dose.grid(lm, vector, c_star_of, asked, bands, vignettes, frame))
    assert [(row.band, row.alpha) for row in rows] == [
        (band, alpha) for band in bands for alpha in (-1.0, 1.0)
    ]
    assert seen == [(0,), (1,), (2,), (3,), (0, 1, 2), (1, 2, 3)]
    single = instrument.evaluate(
        lm, vignettes, frame, vector=vector, coefficients_KL=coefficients(lm.n_layers, (1,), -4.0)
    )[0]
    assert_near(rows[2].coherence, single.coherence, model_rounding(lm), log_p(single) * single.coherence)


def test_stopping_and_bad_calls(lm, setting):
    with pytest.raises(Stopped):
        sweep(lm, setting, request(), stop=lambda: True)
    vector, vignettes, frame, prompts = setting
    with pytest.raises(SettingsError, match="calibrate first"):
        list(dose.sweep(lm, vector, 0.0, request(), vignettes, frame, prompts))
    with pytest.raises(SettingsError, match="band"):
        sweep(lm, setting, request(band=(0.49, 0.5)))


def test_answers_that_are_not_above_chance_or_have_no_mass_judge_nothing(lm, setting):
    """Far out the answer mass of these random weights falls, and their text is not read: no prompts."""
    vector, vignettes, frame, _ = setting
    asked = request(alphas=(0.0, 40.0))
    silent = Profile({}, 1.0, 70, agreement=Agreement(0.15, 0.1, 0.2, 1 / 7))
    able = replace(silent, agreement=Agreement(0.5, 0.4, 0.6, 1 / 7))
    base = Profile({}, 0.9, 3)
    assert dose.answers_unit(base, None) == dose.answers_unit(base, able) == 0.9
    assert dose.answers_unit(base, silent) is None
    assert dose.answers_unit(replace(base, agreement=able.agreement), silent) == 0.9, "its own counts"
    assert dose.breaks([row(1.0, 0.1)], None) == {}

    def verdicts(reading):
        rows = dose.sweep(lm, vector, C_STAR, asked, vignettes, frame, [], reading=reading)
        return [one.verdict for one in rows]

    assert verdicts(able) == ["coherent", "broken"]
    assert verdicts(silent) == ["coherent", "coherent"]
    cells = dose.grid(lm, vector, lambda _: 1.0, asked, [(0.0, 1.0)], vignettes, frame, reading=silent)
    assert [cell.verdict for cell in cells] == [None, None]


def test_a_cloze_is_calibrated_by_the_reading_where_the_vignettes_cannot(lm, setting):
    vector, vignettes, _, prompts = setting
    given = ((-30.0,) * 6 + (-60.0,),) * 2
    reading = Profile({}, None, 70, frame="c", calibration=given)
    rows = list(dose.sweep(lm, vector, C_STAR, request(), vignettes, CLOZE, prompts, reading=reading))
    assert {one.profile.calibration for one in rows} == {given}
    assert [one.coherence for one in rows] == [None] * 3
    assert all(one.trait_shift is not None for one in rows)
