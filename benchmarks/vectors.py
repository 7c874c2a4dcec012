"""What each trait's vectors do beside random directions and the persona told as text: a section of
`benchmarks.readings`.

Every trait by every method of ours, at alpha 0.5 and 1, on 70 of our vignettes: the foundations that the
trait should move, its movement and the agreement that is left, in the frame that suits the model and in a
second one that shares no content word with it; how many of 8 random directions, each at its own c*, move
the trait as far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steer_heal import data, instrument
from steer_heal.cli.tables import Column, number, table
from steer_heal.config import DEFAULT_BAND, OWN_METHODS, CalibrateSettings, ExtractSettings, build
from steer_heal.dose import controls
from steer_heal.dose.calibrate import calibrate_each
from steer_heal.models import LanguageModel, band_layers, user
from steer_heal.records import Profile
from steer_heal.vectors.steering import coefficients
from steer_heal.vectors.vector import extract

N_CONTROLS = 8
ALPHAS = (0.5, 1.0)
SECOND = "cloze-second"
METHODS = tuple(name for name in ("replies", "mean_diff") if name in OWN_METHODS)


def measured(lm: LanguageModel) -> list[dict[str, Any]]:
    """A row for each frame, trait, method and alpha."""
    traits = data.traits()
    asked = [(trait, method) for trait in traits for method in METHODS]
    vectors = [
        extract(lm, data.trait(trait), lm.material.contexts(trait), build(ExtractSettings, method=method))
        for trait, method in asked
    ]
    layers, settings = band_layers(lm.n_layers, DEFAULT_BAND), build(CalibrateSettings, tolerance=0.05)
    prompts = [lm.encode_chat([user(text)]) for text in lm.material.contexts("")[: settings.n_prompts]]
    directions_MLD = torch.stack([vector.directions_LD for vector in vectors])
    c_stars = [found.c_star for found in calibrate_each(lm, directions_MLD, layers, prompts, settings)]
    random_c_stars = controls.c_stars(None, lm, layers, prompts, settings, N_CONTROLS)
    best = instrument.Frames(lm).of().frame
    rows: list[dict[str, Any]] = []
    for frame in dict.fromkeys((best, SECOND)):
        rows += _in_frame(lm, frame, layers, asked, directions_MLD, c_stars, random_c_stars)
    return rows


def _in_frame(
    lm: LanguageModel,
    name: str,
    layers: Sequence[int],
    asked: Sequence[tuple[str, str]],
    directions_MLD: Tensor,
    c_stars: Sequence[float],
    random_c_stars: Sequence[float],
) -> Iterator[dict[str, Any]]:
    frame = data.frame(name)
    vignettes = lm.material.vignettes(condition="other_violate", limit=instrument.LEAST)
    base = instrument.evaluate(lm, vignettes, frame)[0]
    doses = [(m, alpha) for m in range(len(asked)) for alpha in ALPHAS]
    doses_KLM = torch.zeros(len(doses), lm.n_layers, len(asked))
    for k, (m, alpha) in enumerate(doses):
        doses_KLM[k, :, m] = coefficients(lm.n_layers, layers, alpha * c_stars[m])[0]
    steered = instrument.evaluate(
        lm, vignettes, frame, vector=directions_MLD, coefficients_RL=doses_KLM, calibrated=base.calibration
    )
    held = controls.measure(lm, layers, random_c_stars, vignettes, frame, base)
    for (m, alpha), found in zip(doses, steered, strict=True):
        yield _row(name, *asked[m], alpha, c_stars[m], base, found, held)


def _row(
    frame: str,
    trait: str,
    method: str,
    alpha: float,
    c_star: float,
    base: Profile,
    found: Profile,
    held: controls.Controls,
) -> dict[str, Any]:
    target = data.trait(trait).target
    up, down = (next(name for name, sign in target.items() if sign == way) for way in (1, -1))
    moved = sum(sign * (found.p[name] - base.p[name]) for name, sign in target.items())
    random = held.shifts(target)
    return {
        "frame": frame, "trait": trait, "method": method, "alpha": alpha, "c_star": c_star,
        "rises": up, "up_base": base.p[up], "up": found.p[up],
        "falls": down, "down_base": base.p[down], "down": found.p[down],
        "movement": moved, "random_least": min(random), "random_most": max(random),
        "as_far": held.as_far(target, moved), "agreement": found.agreement.value,
        "agreement_base": base.agreement.value, "random_c_stars": held.c_stars, "p": found.p,
    }  # fmt: skip


def report(rows: Sequence[dict[str, Any]]) -> str:
    columns = [
        Column("frame", "frame"), Column("trait", "trait"), Column("method", "method"),
        number("alpha", "alpha", ".1f", 5), number("c_star", "c*", ".2f", 5),
        Column("rises", "rises"), number("up_base", "from", ".3f", 5), number("up", "to", ".3f", 5),
        Column("falls", "falls"), number("down_base", "from", ".3f", 5), number("down", "to", ".3f", 5),
        number("movement", "movement", "+.3f"), number("random_least", "random from", "+.3f"),
        number("random_most", "to", "+.3f"), number("as_far", f"of {N_CONTROLS} as far", "d"),
        number("agreement_base", "agreement from", ".2f"), number("agreement", "to", ".2f", 5),
    ]  # fmt: skip
    return table(columns, rows)
