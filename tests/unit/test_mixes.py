"""Mixes: what an expression says, what it comes to, and each way in which one cannot be had."""

import pytest
import torch

from steer_heal.config import DoseRequest, SettingsError, SteerRequest, Term, build, heal_settings, read_mix
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.dose.mixed import mixed
from steer_heal.records import Calibration, Controls
from steer_heal.vectors.steering import Directions
from steer_heal.vectors.vector import SteeringVector
from tests.crowd import BAND, Crowd, request

KNOWN = ("warm", "formal", "kind-over-cold", "blunt", "dry", "care_over_authority")
CARE, LIBERTY, FAIR = "care_over_authority", "liberty_over_custom", "fairness_over_loyalty"


@pytest.mark.parametrize(
    ("text", "terms", "where"),
    [
        ("0.8 warm - 0.4 formal @answer", (Term(0.8, "warm"), Term(-0.4, "formal")), "answer"),
        ("-warm+2*kind-over-cold", (Term(-1.0, "warm"), Term(2.0, "kind-over-cold")), "both"),
        ("warm without formal @ first  8", (Term(1.0, "warm", "formal"),), "first 8"),
        (".5 ablate warm + 1. dry", (Term(0.5, "warm", ablates=True), Term(1.0, "dry")), "both"),
    ],
)
def test_an_expression_is_read_and_written_again(text, terms, where):
    mix = read_mix(text, KNOWN)
    assert (mix.terms, mix.where) == (terms, where)
    assert read_mix(str(mix)) == mix


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "character 1: expected a number or a trait's name, not its end."),
        ("warm formal", "character 6: expected +, - or @, not 'formal'."),
        ("warm @ here", "character 8: expected after @ one of both, prompt, answer, first N"),
        ("<b>warm", "character 1: expected a number or a trait's name, not '<'."),
        ("warm - formel", "character 8: expected a trait (nearest: formal"),
        ("zzzz", "character 1: expected a trait that there is, not 'zzzz'."),
        ("65 warm", "character 1: expected a dose of at most 64, not '65'."),
        ("warm without warm", "warm without itself is nothing"),
        (
            "warm + formal + blunt + dry + kind-over-cold",
            "has 5 vectors (warm, formal, blunt, dry",
        ),
        ("warm " * 99, "has 495 characters: shorten it to 240 or fewer."),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place_and_what_was_expected(text, said):
    with pytest.raises(SettingsError) as refused:
        read_mix(text, KNOWN)
    assert said in str(refused.value)


def test_a_request_says_its_gate_once():
    assert build(SteerRequest, prompt="a", mix="2 warm @answer").gate == "answer"
    assert build(SteerRequest, prompt="a", mix="2 warm", where="first 2").gate == "first 2"
    assert build(SteerRequest, prompt="a", mix="warm @answer", where="answer").gate == "answer"
    with pytest.raises(SettingsError, match="says @answer and where says prompt: say it in one of the two"):
        build(SteerRequest, prompt="a", mix="warm @answer", where="prompt")
    with pytest.raises(SettingsError, match="says @answer and where says prompt: say it in one of the two"):
        build(DoseRequest, mix="warm @answer", where="prompt")


def test_a_run_measures_a_trait_that_its_mix_adds():
    said = {"model": "tiny", "mix": "0.5 warm - dry + 0.8 formal @answer"}
    made = heal_settings(**said, trait="formal")
    assert (made.gate, read_mix(made.mix).adds) == ("answer", ("formal", "warm"))
    with pytest.raises(SettingsError, match="choose formal or warm as trait, not dry"):
        heal_settings(**said, trait="dry")
    with pytest.raises(SettingsError, match="a trait that its mix adds: give one a number above 0"):
        heal_settings(model="tiny", mix="-warm", trait="warm")
    with pytest.raises(SettingsError, match="leave ablate out of the mix"):
        heal_settings(model="tiny", mix="warm + ablate dry", trait="warm")
    with pytest.raises(SettingsError, match="says @answer and where says prompt"):
        heal_settings(**said, trait="warm", data={"where": "prompt"})


def calibrated(direction, c_star, n_layers=2):
    """A vector of one direction at both layers, steered at layer 1."""
    directions_LD = torch.tensor([direction] * n_layers, dtype=torch.float32)
    vector = SteeringVector(directions_LD, torch.ones(n_layers), torch.full((n_layers,), 10.0))
    return CalibratedVector(vector, (1,), Calibration(c_star, 1.0, 1.0, True, ()))


VECTORS = {
    "warm": calibrated([1.0, 0.0], 2.0),
    "formal": calibrated([0.6, 0.8], 5.0),
    "kind": calibrated([1.0, 1e-3], 3.0),
    "dry": calibrated([0.0, 1.0], 1.0),
}


def of(text):
    mix = read_mix(text)
    return mixed(mix, {name: VECTORS[name] for name in mix.traits})


def test_a_mix_is_the_sum_of_its_terms_in_units_of_each_one_s_c_star():
    made = of("0.5 warm - formal")
    doses_RLM = made.coefficients_RL(0.0, 2.0)
    assert doses_RLM[0].count_nonzero() == 0
    assert doses_RLM[1].tolist() == [[0.0, 0.0], [2.0, -10.0]]
    assert torch.equal(made.steers, torch.tensor([[[1.0, 0.0]] * 2, [[0.6, 0.8]] * 2]))
    length = torch.tensor([1.0 - 3.0, -4.0]).norm() / 10.0
    assert made.fraction(2.0) == pytest.approx(2 * float(length))
    assert made.nats(0.0) == (0.0, False)
    assert made.nats(1.0) is None
    assert made.one is not None
    assert made.one.directions_LD[0].tolist() == [0.0, 0.0]
    assert (made.added * made.one.directions_LD[1]).tolist() == pytest.approx([-2.0, -4.0])
    assert float(made.one.directions_LD[1].norm()) == pytest.approx(1.0)


def test_what_one_has_without_another_is_orthogonal_to_it():
    made = of("formal without warm")
    assert made.steers[0, 1].tolist() == pytest.approx([0.0, 0.8])
    assert made.coefficients_RL(1.0)[0, 1].tolist() == [5.0]


def test_an_ablation_takes_away_a_share_whatever_c_star_is():
    made = of("0.5 ablate formal + warm")
    assert isinstance(made.steers, Directions)
    assert made.steers.ablated == (True, False)
    assert made.one is None
    assert made.coefficients_RL(1.0)[0, 1].tolist() == [0.5, 2.0]
    hidden_BTD = torch.tensor([[[10.0, 0.0]]])
    steering = made.steers.steering(made.coefficients_RL(1.0))
    assert steering.layers == (1,)
    assert steering.plus(1, hidden_BTD)[0, 0].tolist() == pytest.approx(
        [10 - 0.5 * 6 * 0.6 + 2, -0.5 * 6 * 0.8]
    )


def test_a_mix_that_is_nothing_is_refused_and_parallel_vectors_are_told():
    with pytest.raises(SettingsError, match="adds nothing, as its vectors cancel: choose other doses"):
        of("3 warm - 2 kind")
    with pytest.raises(SettingsError, match=r"The mix 0\.5 warm - 0\.5 warm adds nothing"):
        of("0.5 warm - 0.5 warm")
    with pytest.raises(SettingsError, match="kind without warm leaves 0% of it, as the two are parallel"):
        of("kind without warm")
    assert of("formal + warm - dry + kind").message == (
        "warm and kind are parallel (cosine 1.00): together they act as one vector."
    )
    assert of("warm + formal").message == ""


def asked(mix, **more):
    return request(**more).model_copy(update={"mix": mix})


def test_mixes_of_the_same_vectors_are_written_in_one_batch_each_as_alone(engine, batches):
    texts = [f"{CARE} - {LIBERTY}", f"0.3 {CARE} - 2 {LIBERTY} @answer", f"-2 {CARE} + 0 {LIBERTY}"]
    one_by_one = {
        text: [token.id for token in list(engine.steer(asked(text), session="x"))[-1].steered]
        for text in texts
    }
    batches.clear()
    crowd = Crowd(engine, {text: asked(text, prompt="What is right?") for text in texts})
    found = crowd.run()
    assert {text: steered for text, (_, steered) in found.items()} == one_by_one
    assert batches == [3]
    assert crowd.frames[texts[0]][-1].c_star is None
    assert list(engine.steer(asked(CARE, alpha=0.0), session="x"))[-1].steered[0].kl == pytest.approx(
        0.0, abs=1e-6
    )


def test_the_kl_of_a_mix_is_measured_and_one_that_cannot_reach_a_nat_is_told(engine):
    plain = request(alpha=1.0)
    c_star = engine.calibration(CARE, BAND)
    assert engine.kl(asked(CARE), session="x").nats == pytest.approx(c_star.kl_p95, rel=0.02)
    assert engine.kl(plain.model_copy(update={"where": "prompt"}), session="x").nats < c_star.kl_p95
    assert list(engine.steer(asked(CARE), session="x"))[-1].dose_nats == pytest.approx(
        c_star.kl_p95, rel=0.02
    )
    weak = engine.kl(asked(f"0.0001 {CARE}"), session="x")
    assert weak.nats < 1e-3
    assert "never reaches 1 nat: even at alpha 64 its KL is" in weak.message


def test_what_cannot_be_mixed_is_one_sentence(engine):
    with pytest.raises(SettingsError, match="cancel"):
        list(engine.steer(asked(f"{CARE} - {CARE}"), session="x"))
    with pytest.raises(SettingsError, match="leave ablate out of the mix"):
        list(engine.effect(build(DoseRequest, mix=f"ablate {CARE}", band=BAND), session="x"))


def swept(engine, mix, **more):
    how = {"band": BAND, "alphas": (0.0, 1.0), "prompts": ("Hi",), "n_vignettes": 7, "controls": 2}
    return list(engine.dose(build(DoseRequest, mix=mix, **how | more), session="x"))[-1]


def test_doses_of_a_mix_are_held_against_controls_where_it_costs_as_much_as_they_do(engine):
    found = swept(engine, f"0.2 {CARE} - 0.1 {FAIR}")
    assert found.nat not in (0.0, 1.0, None)
    assert [row.alpha for row in found.rows] == sorted([0.0, 1.0, found.nat])
    assert found.rows[0].trait_shift == pytest.approx(0.0, abs=1e-5)
    assert found.movement == next(row.trait_shift for row in found.rows if row.alpha == found.nat)
    assert f"at alpha {found.nat:g} the trait moves" in found.against({"Care": 1})
    assert len(found.controls.random) == 2
    at_nat = asked(f"0.2 {CARE} - 0.1 {FAIR}", alpha=found.nat)
    assert engine.kl(at_nat, session="x").nats == pytest.approx(1.0, rel=0.05)
    for mix in (f"0.0001 {CARE}", f"ablate {CARE}"):
        found = swept(engine, mix)
        assert (found.nat, found.controls, len(found.rows)) == (None, None, 2)
        assert found.against({"Care": 1}).startswith("no dose of this mix costs the nat")


def test_what_was_measured_to_be_no_better_than_random_is_doubted_before_it_is_healed(engine, monkeypatch):
    monkeypatch.setattr(Controls, "shifts", lambda self, _target: (9.0,) * len(self.random))
    mix = f"0.2 {CARE} - 0.3 {FAIR}"

    def doubt(**more):
        how = {"model": engine.info.name, "band": BAND, "mix": f"{mix} @answer", "trait": CARE, **more}
        return engine.doubt(heal_settings(**how))

    assert doubt() == ""
    swept(engine, mix, n_vignettes=3)
    assert doubt() == "", "three vignettes say nothing"
    found = swept(engine, mix)
    said = f"by {found.movement:+.3f}, and 2 of 2 random directions of the same KL move it as far, over 7"
    assert said in doubt()
    assert "1 of 1 random" in doubt(evaluate={"controls": 1})
    others = {"mix": CARE}, {"band": (0.0, 1.0)}, {"extract": {"method": "pca"}}, {"model": "demo"}
    for other in (*others, {"evaluate": {"controls": 0}}):
        assert doubt(**other) == ""
    list(engine.effect(build(DoseRequest, band=BAND, controls=1), session="x"))
    assert "1 of 1 random" in doubt(mix="")


def test_texts_of_a_sweep_are_steered_by_its_gate_and_profiles_are_not(engine):
    both, answer = swept(engine, CARE, controls=0), swept(engine, f"{CARE} @answer", controls=0)
    assert answer.rows[1].kl_p95 != both.rows[1].kl_p95
    assert answer.rows[1].profile.p == both.rows[1].profile.p


def test_a_mix_of_one_vector_does_what_the_vector_does(engine):
    how = {"band": BAND, "controls": 1}
    vector, mix = (
        list(engine.effect(build(DoseRequest, mix=mix, **how), session="x"))[-1]
        for mix in ("", f"0.3 {CARE}")
    )
    assert mix.c_star == pytest.approx(vector.c_star, rel=0.02)
    assert mix.movement == pytest.approx(vector.movement, abs=0.05 * abs(vector.movement) + 1e-4)


def test_the_layers_of_a_mix_are_mapped(engine):
    asked_for = build(DoseRequest, mix=f"{CARE} - 0.5 {FAIR}", alphas=(0.0, 1.0), prompts=("Hi",))
    cells = list(engine.grid(asked_for, session="x"))[-1].rows
    n_layers = engine.info.n_layers
    assert len(cells) == 2 * (n_layers + max(0, n_layers - 2))
    assert all(cell.kl_p95 > 0.0 for cell in cells if cell.alpha)
