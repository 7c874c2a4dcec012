"""The axes of a sweep: what they may be, the grid they make, and what its numbers come to."""

from __future__ import annotations

import pytest

from steer_heal.config import SettingsError, axes, heal_settings
from steer_heal.engine.sweep_table import READINGS, differences, groups, last_rounds
from steer_heal.records import SweepDifference


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=0..4", [0, 1, 2, 3, 4]),
        ("seed=0..1,7", [0, 1, 7]),
        ("train.divergence=nll, kl_rev", ["nll", "kl_rev"]),
        ("train.lam=0.5,1", [0.5, 1]),
        ("band=[0.4,0.6],[0.2,0.8]", [[0.4, 0.6], [0.2, 0.8]]),
        ("model=demo,google/gemma-3-1b-it", ["demo", "google/gemma-3-1b-it"]),
        ("data.top_p=null,0.9", [None, 0.9]),
    ],
)
def test_values_are_json_text_or_a_span(text: str, values: list) -> None:
    assert axes.parse([text]) == {text.partition("=")[0]: values}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["train.divergance=nll"], "train.divergence"),
        (["train=1"], "names no setting"),
        (["seed"], "no axis"),
        ([], "needs an axis"),
        (["seed=0,1", "seed=2"], "twice"),
        (["seed=1,1"], "twice"),
        (["seed="], "no value"),
        (["seed=0..99999"], "100,000 runs"),
    ],
)
def test_what_is_no_sweep_is_refused_in_a_sentence(texts: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as error:
        axes.parse(texts)
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("budget", [0, 101, 3])
def test_a_budget_is_kept(budget: int) -> None:
    with pytest.raises(SettingsError):
        axes.parse(["seed=0..3"], budget)


def test_the_grid_has_every_combination_and_a_cell_is_settings() -> None:
    varied = axes.parse(["train.divergence=nll,kl_rev", "train.lam=2", "seed=0,1"])
    cells = axes.cells(varied)
    assert [axes.in_words(cell) for cell in cells] == [
        f"train.divergence={divergence} train.lam=2 seed={seed}"
        for divergence in ("nll", "kl_rev")
        for seed in (0, 1)
    ]
    assert axes.told(varied) == "train.divergence=nll,kl_rev train.lam=2 seed=0,1"
    base = heal_settings(model="demo", train={"epochs": 2})
    made = axes.applied(base, cells[-1])
    assert (made.train.divergence, made.train.lam, made.train.epochs, made.seed) == ("kl_rev", 2.0, 2, 1)
    with pytest.raises(SettingsError, match=r"train\.lam"):
        axes.applied(base, {"train.lam": -1})


def row(run: str, round_: int | None, seed: int, movement: float | None, **varied: object) -> dict:
    readings = dict.fromkeys(READINGS)
    cell = {"run_id": run, "round": round_, "seed": seed, "movement": movement, "status": "finished"}
    return {**readings, **cell, "varied": {**varied, "seed": seed}}


def test_a_run_counts_once_it_has_finished_and_by_its_last_round() -> None:
    going = {**row("c", 1, 2, 0.9), "status": "running"}
    rows = [row("a", 1, 0, 0.1), row("a", 2, 0, 0.2), row("b", None, 1, None), going]
    assert [found["movement"] for found in last_rounds(rows)] == [0.2]


def test_means_spreads_and_paired_differences_are_over_seeds() -> None:
    """Of three seeds, by hand: differences 0.1, 0.2, 0.3 have mean 0.2 and sd 0.1, t(2) is 4.303."""
    rows = [row(f"a{seed}", 1, seed, seed / 10, lam=1) for seed in range(3)]
    rows += [row(f"b{seed}", 1, seed, seed / 10 + (seed + 1) / 10, lam=2) for seed in range(3)]
    one, other = groups(rows)
    assert (one.values, one.seeds) == ({"lam": 1}, (0, 1, 2))
    assert one.mean["movement"] == pytest.approx(0.1)
    assert one.spread["movement"] == pytest.approx(0.1)
    assert one.mean["care"] is None
    (apart,) = differences(rows)
    half = 4.303 * 0.1 / 3**0.5
    assert (apart.axis, apart.reading, apart.n) == ("lam", "movement", 3)
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert apart.verdict == "no different"
    assert other.mean["movement"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("mean", "low", "high", "verdict"),
    [
        (0.1, 0.05, 0.15, "higher"),
        (-0.1, -0.2, -0.05, "lower"),
        (0.0, 0.0, 0.0, "no different"),
        (0.1, None, None, "one seed tells nothing"),
    ],
)
def test_a_difference_in_a_word(mean: float, low: float | None, high: float | None, verdict: str) -> None:
    assert SweepDifference("lam", {}, {}, "movement", 2, mean, low, high).verdict == verdict


def test_settings_that_differ_in_two_axes_or_share_no_seed_are_not_compared() -> None:
    rows = [row("a", 1, 0, 0.1, lam=1, tau=0), row("b", 1, 0, 0.2, lam=2, tau=1)]
    assert differences(rows) == []
    assert differences([row("a", 1, 0, 0.1, lam=1), row("b", 1, 1, 0.2, lam=2)]) == []
    (apart,) = differences([row("a", 1, 0, 0.1, lam=1), row("b", 1, 0, 0.2, lam=2)])
    assert (apart.n, apart.low) == (1, None)
