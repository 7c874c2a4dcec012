"""What a trait's movement is held against: random directions at the same KL, and the persona told as text.

A learned direction that moves a reading no further than a random one of the same KL has shown nothing, which
is a known finding of the field: so how many random ones move it as far stands beside every movement.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from steer_heal.config import CalibrateSettings
from steer_heal.data import AnyFrame, measurements
from steer_heal.dose.calibrate import calibrate_each
from steer_heal.evaluate.choice import evaluate
from steer_heal.models import LanguageModel, digest
from steer_heal.records import Controls, Profile, Vignette
from steer_heal.vectors.steering import coefficients

VERSION = 2
"""To be raised by hand with every change of what `c_stars` gives: no older ones are then found again."""
TOLERANCE = 0.05
"""How close a random direction's c* is found, relative: its KL is then within a tenth of the trait's."""


def random_directions(n: int, n_layers: int, width: int, seed: int = 0) -> Tensor:
    """Unit directions drawn evenly over the sphere, one a layer, of `n` vectors: (M, L, D), float32."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, n_layers, width, generator=generator), dim=-1)


def c_stars(
    cache_dir: str | Path | None,
    lm: LanguageModel,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    n: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    pause: Callable[[], None] | None = None,
) -> tuple[float, ...]:
    """c* of the first `n` random directions on `layers`, each to within `TOLERANCE`, all in one search; kept
    in the folder under all that decides it, where there is one, and found there by whoever asks for fewer.

    `prompts_ids`, `settings`: as the trait's c* is found. `progress` hears of each pass, as
    `calibrate`'s does; `pause` may end it by raising.
    """
    coarse = settings.model_copy(update={"tolerance": TOLERANCE})
    parts = [list(prompt) for prompt in prompts_ids[: settings.n_prompts]], coarse.model_dump()
    name = f"controls-{digest(VERSION, lm.fingerprint, list(layers), *parts)}.json"
    known = measurements.read(cache_dir, name, "c_stars", tuple[float, ...])
    if known and len(known) >= n:
        return known[:n]
    directions_MLD = random_directions(n, lm.n_layers, lm.width)
    found = calibrate_each(lm, directions_MLD, layers, prompts_ids, coarse, progress=progress, pause=pause)
    values = tuple(calibration.c_star for calibration in found)
    measurements.write(cache_dir, name, {"model": lm.name, "layers": list(layers), "c_stars": values})
    return values


def measure(
    lm: LanguageModel,
    layers: Sequence[int],
    found_c_stars: Sequence[float],
    vignettes: Sequence[Vignette],
    frame: AnyFrame,
    base: Profile,
    *,
    persona: str = "",
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Controls:
    """Beside `base`, the profile on these vignettes in this frame, those of the random directions, each at
    its own of `found_c_stars` on `layers`, and of base told the persona. `progress` hears how many texts of
    the random directions were read. Errors: `Stopped` when `stop()` says so."""
    n = len(found_c_stars)
    doses_RLM = torch.zeros(n, lm.n_layers, n)
    for m, c_star in enumerate(found_c_stars):
        doses_RLM[m, :, m] = coefficients(lm.n_layers, layers, c_star)[0]
    directions_MLD = random_directions(n, lm.n_layers, lm.width)
    ask = partial(evaluate, lm, frame=frame, calibrated=base.calibration, stop=stop)
    random = ask(vignettes, vector=directions_MLD, coefficients_RL=doses_RLM, progress=progress) if n else []
    under_persona = [replace(vignette, text=f"{persona}\n\n{vignette.text}") for vignette in vignettes]
    return Controls(
        base=base.p,
        random=tuple(profile.p for profile in random),
        persona=ask(under_persona)[0].p if persona else None,
        c_stars=tuple(found_c_stars),
    )
