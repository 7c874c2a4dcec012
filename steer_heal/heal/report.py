"""What a finished round's numbers say: intervals over vignettes, paired differences, shifts. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer_heal.records import Trait, trait_shift

DRAWS = 1000

Floats = NDArray[np.float64]
Data = Mapping[str, Any]


def answers(profile: Data) -> dict[str, Floats]:
    """p (F,) of each vignette that was answered, from a `profile` event's data or a `Profile` as a dict."""
    return {
        row["id"]: np.array([row["p"][name] for name in profile["p"]])
        for row in profile["per_vignette"]
        if row["mass"] > 0.0
    }


def report(
    base: Data, steered: Data, healed: Data, target: Mapping[str, int], seed: int = 0
) -> dict[str, Any]:
    """Of a round: 95% bootstrap intervals over vignettes, one set of draws for all: differences are paired.

    `intervals`: stage -> name -> [low, high] of the mean p. `differences`: healed minus base and minus
    steered, [mean, low, high] of the target's signed sum. `retention_interval`: of the ratio of shifts (None
    where steering's shift is not above 0 in every draw). `shift_cosine`: of healed minus base with steered
    minus base, over the seven foundations; None over two poles, of which one says all. `steered` is the first
    round's, the base under steering.
    """
    found = {"base": answers(base), "steered": answers(steered), "healed": answers(healed)}
    names = tuple(base["p"])
    ids = sorted(set.intersection(*(set(rows) for rows in found.values())))
    if not ids:
        return {}
    p_SNF = np.stack([np.stack([rows[key] for key in ids]) for rows in found.values()])
    rng = np.random.default_rng(seed)
    drawn_KN = rng.integers(0, len(ids), size=(DRAWS, len(ids)))
    weights_KN = np.apply_along_axis(np.bincount, 1, drawn_KN, minlength=len(ids)) / len(ids)
    means_SKF = np.einsum("kn,snf->skf", weights_KN, p_SNF)
    sign_F = np.array([target.get(name, 0) for name in names], dtype=np.float64)
    traits_SK, trait_S = means_SKF @ sign_F, p_SNF.mean(axis=1) @ sign_F
    moved_K, steered_K = traits_SK[2] - traits_SK[0], traits_SK[1] - traits_SK[0]
    shifts_SF = p_SNF.mean(axis=1) - p_SNF[0].mean(axis=0)
    return {
        "intervals": {
            stage: {name: _interval(means_SKF[place, :, index]) for index, name in enumerate(names)}
            for place, stage in enumerate(found)
        },
        "differences": {
            "healed-base": [float(trait_S[2] - trait_S[0]), *_interval(moved_K)],
            "healed-steered": [float(trait_S[2] - trait_S[1]), *_interval(traits_SK[2] - traits_SK[1])],
        },
        "retention_interval": _interval(moved_K / steered_K) if (steered_K > 0).all() else None,
        "shift_cosine": cosine(shifts_SF[2], shifts_SF[1]) if len(names) > 2 else None,
    }


def movements(
    traits: Sequence[Trait], base: Data, steered: Data, healed: Data
) -> dict[str, dict[str, float]]:
    """How far each trait moved from base, `steered` and `healed`, over `n_vignettes`: by the data of three
    `profile` events, of which `others` holds the profiles of traits that their own `p` says nothing of."""
    found = {}
    for trait in traits:
        before, *after = (event.get("others", {}).get(trait.name, event) for event in (base, steered, healed))
        moved = [trait_shift(one["p"], before["p"], trait.target) for one in after]
        found[trait.name] = dict(zip(("steered", "healed"), moved, strict=True))
        found[trait.name]["n_vignettes"] = before["n_vignettes"]
    return found


def in_words(moved: Mapping[str, Mapping[str, float]]) -> str:
    """The same in a clause."""
    return ", ".join(
        f"{name} moved by {by['healed']:+.3f} (steering: {by['steered']:+.3f}; {by['n_vignettes']} vignettes)"
        for name, by in moved.items()
    )


def cosine(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float | None:
    """Cosine of two shifts; None where one of them is 0."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / lengths if lengths else None


def _interval(values_K: Floats) -> list[float]:
    low, high = np.percentile(values_K, [2.5, 97.5])
    return [float(low), float(high)]
