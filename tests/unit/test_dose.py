import json
import math
from dataclasses import replace

import pytest
import torch

from steer_heal import data
from steer_heal.config import CalibrateSettings, DoseRequest, SampleSettings, SettingsError, build
from steer_heal.dose import calibrate as calibration
from steer_heal.dose import sweeps
from steer_heal.dose.calibrate import cached, quantile
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.evaluate.choice import evaluate
from steer_heal.models import band_layers, user
from steer_heal.records import Agreement, Calibration, DoseRow, Profile, Stopped, Trait, trait_shift
from steer_heal.vectors.steering import coefficients
from steer_heal.vectors.vector import SteeringVector
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
    prompts = [lm.encode_chat([user(text)]) for text in ("Hello there.", "What is it?")]
    return tiny.vector(lm, seed=2), lm.material.vignettes(limit=2), data.frame("choice"), prompts


def request(**more):
    sample = build(SampleSettings, max_new_tokens=6, seed=3)
    return build(DoseRequest, **{"alphas": (0.0, 1.0, -2.0), "band": (0.3, 0.7), "sample": sample, **more})


def calibrated(vector, layers, c_star=C_STAR):
    return CalibratedVector(vector, layers, Calibration(c_star, 1.0, 1.0, True, ()))


def sweep(lm, setting, asked, **more):
    vector, *rest = setting
    steered_by = calibrated(vector, band_layers(lm.n_layers, asked.band))
    return list(sweeps.sweep(lm, steered_by, asked, *rest, **more))


def row(alpha, word, answers=None):
    return DoseRow(alpha, (0.4, 0.6), None, None, None, None, None, None, word, answers_verdict=answers)


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
    assert_near(zero.relevance_ratio, 1.0, model_rounding(lm), size / abs(zero.relevance))
    assert zero.verdict is not None
    assert one.kl_p95 > 0.01


def test_profiles_are_those_of_the_steered_model(lm, setting):
    vector, vignettes, frame, _ = setting
    one = sweep(lm, setting, request(alphas=(1.0,)))[0]
    steered_KL = coefficients(lm.n_layers, (1, 2), C_STAR)
    wanted, base = (
        evaluate(lm, vignettes, frame, vector=vector, coefficients_RL=c)[0]
        for c in (steered_KL, torch.zeros_like(steered_KL))
    )
    assert_near(one.profile.p, wanted.p, model_rounding(lm), log_p(wanted))
    shift = trait_shift(wanted.p, base.p, data.trait("care_over_authority").target)
    assert_near(one.trait_shift, shift, model_rounding(lm), log_p(wanted))


@pytest.mark.parametrize(("fit", "batches"), [(48, [1, 9]), (4, [1, 4, 4, 1])])
def test_doses_go_through_the_same_passes_as_far_as_memory_allows(lm, setting, monkeypatch, fit, batches):
    written, shares = [], []
    real = sweeps.complete

    def complete(lm, rows, *args, **named):
        written.append(len(rows))
        return real(lm, rows, *args, **named)

    monkeypatch.setattr(sweeps, "complete", complete)
    monkeypatch.setattr(sweeps, "rows_that_fit", lambda lm, n_tokens, most: min(most, fit))
    vector, vignettes, frame, prompts = setting
    asked = request(alphas=tuple(float(i) for i in range(9)))
    found = list(sweep(lm, (vector, vignettes, frame, prompts[:1]), asked, progress=shares.append))
    assert [row.alpha for row in found] == list(asked.alphas)
    assert written == batches
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(set(shares)) > 2 * len(batches)


def test_breaks_are_the_first_alphas_that_are_as_bad():
    rows = [
        row(0.0, "broken", "lost"), row(4.0, "broken", "weakened"), row(-8.0, "broken"),
        row(2.0, "fine", "kept"), row(3.0, "damaged", "lost"), row(1.0, "fine"), row(0.5, None),
    ]  # fmt: skip
    assert sweeps.breaks(rows) == {"damaged": 3.0, "broken": 4.0, "weakened": 3.0, "lost": 3.0}
    assert sweeps.breaks([row(1.0, "broken")]) == {"damaged": 1.0, "broken": 1.0}
    assert sweeps.breaks(rows[:1]) == sweeps.breaks([]) == {}


@pytest.mark.parametrize("marks", [(1.312, 3.7), (1.312, 1.312), (0.02, 9.0)])
def test_refining_closes_in_on_where_the_text_s_word_changes(lm, setting, monkeypatch, marks):
    """The text's word is made a known curve of alpha."""
    measured = []

    def made(*, alpha, **values):
        measured.append(alpha)
        at = sum(alpha >= mark for mark in marks)
        return DoseRow(alpha=alpha, **values | {"verdict": ("fine", "damaged", "broken")[at]})

    monkeypatch.setattr(sweeps, "DoseRow", made)
    rows = sweep(lm, setting, request(alphas=(0.0, 1.0, 2.0, 6.0), refine=True))
    assert [row.alpha for row in rows[:4]] == [0.0, 1.0, 2.0, 6.0]
    assert sorted(measured) == sorted({row.alpha for row in rows}), "no alpha is measured twice"
    found = {word: at for word, at in sweeps.breaks(rows).items() if word in ("damaged", "broken")}
    assert list(found) == ["damaged", "broken"][: sum(mark < 6.0 for mark in marks)]
    for word, exact in zip(found, marks, strict=False):
        assert exact <= found[word] <= exact + sweeps.RESOLUTION + 1e-9
        assert any(exact - sweeps.RESOLUTION - 1e-9 <= row.alpha < exact for row in rows)
    assert all(row.perplexity is not None for row in rows)


def test_a_grid_has_a_row_for_every_band_and_alpha(lm, setting):
    vector, vignettes, frame, prompts = setting
    bands = sweeps.grid_bands(lm.n_layers)
    assert len(bands) == 4 + 2
    for n_layers, held in ((2, [[0], [1]]), (7, [[0, 1, 2], [3, 4, 5], [4, 5, 6]]), (3, [[0, 1, 2]])):
        found = [band_layers(n_layers, band) for band in sweeps.grid_bands(n_layers, coarse=True)]
        assert list(map(list, found)) == held
    asked, seen = request(alphas=(-1.0, 1.0), sample=build(SampleSettings, max_new_tokens=60)), []

    def calibrated_at(layers):
        seen.append(layers)
        return calibrated(vector, layers, 4.0)

    rows = list(sweeps.grid(lm, calibrated_at, asked, bands, vignettes, frame, prompts * 3))
    assert [(row.band, row.alpha) for row in rows] == [
        (band, alpha) for band in bands for alpha in (-1.0, 1.0)
    ]
    assert seen == [(0,), (1,), (2,), (3,), (0, 1, 2), (1, 2, 3)]
    single = evaluate(
        lm, vignettes, frame, vector=vector, coefficients_RL=coefficients(lm.n_layers, (1,), -4.0)
    )[0]
    assert all(len(row.texts) == sweeps.GRID_PROMPTS and row.verdict for row in rows)
    assert len(rows[0].sample) <= len(max(lm.tokenizer.get_vocab(), key=len)) * sweeps.GRID_TOKENS
    assert_near(rows[2].coherence, single.coherence, model_rounding(lm), log_p(single) * single.coherence)


def test_stopping_and_bad_calls(lm, setting):
    with pytest.raises(Stopped):
        sweep(lm, setting, request(), stop=lambda: True)
    vector, vignettes, frame, prompts = setting
    with pytest.raises(SettingsError, match="calibrate first"):
        list(sweeps.sweep(lm, calibrated(vector, (1, 2), 0.0), request(), vignettes, frame, prompts))


def test_answers_that_are_not_above_chance_or_have_no_mass_judge_nothing(lm, setting):
    """Far out the answer mass of these random weights falls, and their text is not read: no prompts."""
    vector, vignettes, frame, _ = setting
    asked = request(alphas=(0.0, 40.0))
    silent = Profile({}, 1.0, 70, agreement=Agreement(0.15, 0.1, 0.2, 1 / 7))
    able = replace(silent, agreement=Agreement(0.5, 0.4, 0.6, 1 / 7))

    def words(reading):
        rows = sweep(lm, (vector, vignettes, frame, []), asked, reading=reading)
        return [(one.verdict, one.answers_verdict) for one in rows]

    assert words(able) == words(None) == [(None, "kept"), (None, "lost")]
    assert words(silent) == [(None, None), (None, None)]
    everywhere = calibrated(vector, tuple(range(lm.n_layers)), 1.0)
    cells = sweeps.grid(lm, lambda _: everywhere, asked, [(0.0, 1.0)], vignettes, frame, [], reading=silent)
    assert [cell.answers_verdict for cell in cells] == [None, None]


AGREES = Agreement(0.53, 0.43, 0.63, 1 / 7)


@pytest.mark.parametrize(
    ("base", "steered", "word"),
    [
        ((1.0, AGREES), (0.96, Agreement()), "kept"),
        ((1.0, AGREES), (0.9, Agreement()), "weakened"),
        ((1.0, AGREES), (0.5, AGREES), "lost"),
        ((1.0, AGREES), (float("nan"), AGREES), "lost"),
        ((None, AGREES), (None, replace(AGREES, value=0.44)), "kept"),
        ((None, AGREES), (None, Agreement(0.4, 0.3, 0.5, 1 / 7)), "weakened"),
        ((None, AGREES), (None, Agreement(0.16, 0.1, 0.24, 1 / 7)), "lost"),
        ((None, Agreement()), (None, Agreement()), None),
        ((1.0, Agreement(0.14, 0.1, 0.2, 1 / 7)), (0.1, Agreement()), None),
    ],
)
def test_the_answers_word_is_by_mass_or_else_by_agreement(base, steered, word):
    found, start = (Profile({}, mass, 98, agreement=worth) for mass, worth in (steered, base))
    assert found.answers_against(start) == word


def test_a_cloze_is_calibrated_by_the_reading_where_the_vignettes_cannot(lm, setting):
    vector, vignettes, _, prompts = setting
    given = ((-30.0,) * 6 + (-60.0,),) * 2
    reading = Profile({}, None, 70, frame="c", calibration=given)
    rows = sweep(lm, (vector, vignettes, CLOZE, prompts), request(), reading=reading)
    assert {one.profile.calibration for one in rows} == {given}
    assert [one.coherence for one in rows] == [None] * 3
    assert all(one.trait_shift is not None for one in rows)


TRAIT = Trait("kind", "Kind", "", "Be kind.", "Obey.", {})
SETTINGS = CalibrateSettings(n_tokens=4, n_prompts=2, tolerance=0.05)
PROMPTS = [(2, 9, 8), (2, 7, 30, 31)]


def search(measure, settings, scout=None, progress=None):
    """One search, whose measures know nothing of others."""

    def alone(one):
        return one and (lambda asked: one([c for _, c in asked]))

    return calibration.search(1, alone(measure), settings, scout=alone(scout), progress=progress)[0]


@pytest.fixture
def vector():
    return tiny.vector(tiny.shared("llama"), seed=1)


@pytest.mark.parametrize("root", [0.11, 0.5, 3.0, 16.3, 250.0, 1000.0])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
def test_the_search_finds_the_crossing_in_few_passes(root, power):
    passes = []

    def measure(doses):
        passes.append(len(doses))
        return [(c / root) ** power for c in doses]

    found = search(measure, CalibrateSettings())
    assert found.reached
    assert found.c_star == pytest.approx(root, rel=0.005)
    assert found.kl_p95 == pytest.approx(1.0, rel=0.005 * power)
    assert len(passes) <= 4
    assert len(found.history) == sum(passes[1:])


@pytest.mark.parametrize(
    ("kl", "root"),
    [
        (lambda c: 0.2 if c < 7.7 else 30.0, 7.7),
        (lambda c: 2.0 if 3.0 <= c < 50.0 or c > 400.0 else 0.1, 3.0),
        (lambda c: quantile([c**2 / 100 if c < 30 else math.nan], 0.95), 10.0),
    ],
    ids=["a jump", "the lowest of several crossings", "a model that breaks into no numbers"],
)
def test_the_search_finds(kl, root):
    found = search(lambda doses: [kl(c) for c in doses], CalibrateSettings())
    assert found.reached
    assert found.c_star == pytest.approx(root, rel=0.005)


@pytest.mark.parametrize(("kl", "end", "word"), [(0.25, 1024.0, "never reached"), (9.5, 0.1, "already more")])
def test_a_bracket_end_is_said_with_the_kl_it_has(kl, end, word):
    found = search(lambda doses: [kl for _ in doses], CalibrateSettings())
    assert (found.reached, found.c_star, found.kl_p95) == (False, end, kl)
    assert word in found.message
    assert f"{kl:g} nats" in found.message


@pytest.mark.parametrize("error", [0.0, 0.01, 0.3, 1.0, 4.0, 300.0])
def test_a_scout_that_misleads_costs_passes_but_not_the_answer(error):
    """Also one that sees no crossing."""
    found = search(
        lambda doses: [c / 12.5 for c in doses],
        CalibrateSettings(),
        scout=lambda doses: [c / 12.5 * error for c in doses],
    )
    assert found.c_star == pytest.approx(12.5, rel=0.005)
    assert all(kl == c / 12.5 for c, kl in found.history)


def test_a_tolerance_beyond_the_floats_ends():
    found = search(list, CalibrateSettings(tolerance=1e-300))
    assert found.c_star == pytest.approx(1.0, rel=1e-12)


def test_progress_ends_and_never_passes_its_total():
    heard = []
    search(lambda doses: list(doses), CalibrateSettings(), progress=lambda done, n: heard.append((done, n)))
    assert [done for done, _ in heard] == list(range(1, len(heard) + 1))
    assert all(done < n for done, n in heard)


def test_no_prompts_or_no_layers(vector):
    lm = tiny.shared("llama")
    with pytest.raises(SettingsError):
        calibration.calibrate(lm, vector, (1,), [], SETTINGS)
    with pytest.raises(SettingsError):
        calibration.calibrate(lm, vector, (), PROMPTS, SETTINGS)


def test_the_cache_answers_the_same_question_and_no_other(tmp_path, vector, monkeypatch):
    asked = []
    monkeypatch.setattr(calibration, "calibrate", lambda *a, **k: asked.append(a) or search(list, SETTINGS))
    lm = tiny.shared("llama")
    first = cached(tmp_path, lm, TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
    assert cached(tmp_path, lm, TRAIT, vector, (1, 2), PROMPTS, SETTINGS) == first
    assert len(asked) == 1
    other_vector = SteeringVector(vector.directions_LD.roll(1, 0), vector.norms_L, vector.residual_norms_L)
    other_trait = Trait("kind", "Kind", "", "Be unkind.", "Obey.", {})
    for question in (
        (tiny.shared("qwen3"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS),
        (lm, other_trait, vector, (1, 2), PROMPTS, SETTINGS),
        (lm, TRAIT, other_vector, (1, 2), PROMPTS, SETTINGS),
        (lm, TRAIT, vector, (1,), PROMPTS, SETTINGS),
        (lm, TRAIT, vector, (1, 2), PROMPTS[:1], SETTINGS),
        (lm, TRAIT, vector, (1, 2), PROMPTS, CalibrateSettings(target_kl=2.0)),
    ):
        before = len(asked)
        cached(tmp_path, *question)
        assert len(asked) == before + 1


def test_a_damaged_cache_file_is_measured_again(tmp_path, vector):
    question = (tmp_path, tiny.shared("llama"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
    first = cached(*question)
    (file,) = tmp_path.iterdir()
    for damage in ("", "{}", json.dumps({"version": 1, "calibration": {"history": []}}), "[1, 2]"):
        file.write_text(damage)
        assert cached(*question) == first
    assert json.loads(file.read_text())["calibration"]["c_star"] == first.c_star


def test_a_folder_that_cannot_be_written(tmp_path, vector):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be kept"):
        cached(tmp_path / "file", tiny.shared("llama"), TRAIT, vector, (1, 2), PROMPTS, SETTINGS)
