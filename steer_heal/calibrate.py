"""c*: the coefficient at which steering moves the next token by one nat, at the 95th percentile."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .config import CalibrateSettings, SampleSettings, SettingsError, build
from .generate import Row, complete
from .models import LanguageModel
from .records import Calibration, Trait
from .steering import coefficients
from .vector import SteeringVector

Progress = Callable[[int, int], None]
Measure = Callable[[Sequence[float]], list[float]]
_ROWS = 64
_COARSE = 9
_PASSES = 4
"""About how many passes a search takes."""
_FILE_VERSION = 1


def calibrate(
    lm: LanguageModel,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    *,
    progress: Progress | None = None,
) -> Calibration:
    """The least c with quantile_t KL(steered(c) || base) = `target_kl` nats, t the tokens of greedy rollouts.

    When an end of the bracket is hit, `reached` is False, c* is that end and `message` gives the KL there.
    Errors: `SettingsError` without prompts or without layers.
    """
    if not prompts_ids or not layers:
        raise SettingsError("Calibration needs at least one prompt and one layer.")
    measure = measurement(lm, vector, layers, prompts_ids, settings)
    found = search(measure, settings, progress=progress)
    return replace(found, residual_norm=float(vector.residual_norms_L[list(layers)].mean()))


def measurement(
    lm: LanguageModel,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
) -> Measure:
    """From coefficients to the quantile of KL(steered || base) at each, in nats, all in one batch."""
    prompts = [tuple(prompt) for prompt in prompts_ids][: settings.n_prompts]
    sample = build(SampleSettings, max_new_tokens=settings.n_tokens, greedy=True)

    def measure(doses: Sequence[float]) -> list[float]:
        rows_L = [coefficients(lm.n_layers, layers, c)[0] for c in doses]
        rows = [Row(prompt, row_L, shadow=True) for row_L in rows_L for prompt in prompts]
        written = complete(lm, rows, vector.directions_LD, sample, batch_size=_ROWS)
        kls = [[token.kl for token in answer.tokens if token.kl is not None] for answer in written]
        per_dose = [kls[start : start + len(prompts)] for start in range(0, len(kls), len(prompts))]
        return [quantile([*itertools.chain(*group)], settings.quantile) for group in per_dose]

    return measure


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours; not a number (a broken model) counts as infinite."""
    numbers = torch.tensor(values, dtype=torch.float64).nan_to_num(nan=math.inf)
    return float(torch.quantile(numbers, q))


def search(measure: Measure, settings: CalibrateSettings, *, progress: Progress | None = None) -> Calibration:
    """The first dose of the bracket at which `measure` reaches the target, within the tolerance.

    A grid even in log c, then passes of a few doses around where log KL against log c crosses the target,
    until the crossing lies between two measured doses that differ by less than the tolerance.
    """
    low, high = settings.bracket
    history: dict[float, float] = {}
    passes: list[int] = []

    def look(doses: Sequence[float]) -> None:
        fresh = [c for c in dict.fromkeys(doses) if c not in history]
        history.update(zip(fresh, measure(fresh), strict=True))
        passes.append(len(fresh))
        if progress:
            progress(len(passes), max(_PASSES, len(passes) + 1))

    look([low * (high / low) ** (i / (_COARSE - 1)) for i in range(_COARSE)])
    cell = _cell(history, settings.target_kl)
    if cell is None:
        return _pinned(history, settings)
    while cell[1] > cell[0] * (1 + settings.tolerance):
        doses = _refined(cell, history, settings)
        if not doses:
            break
        look(doses)
        cell = _cell(history, settings.target_kl) or cell
    best = min(cell, key=lambda c: abs(history[c] - settings.target_kl))
    return Calibration(best, history[best], settings.target_kl, True, tuple(history.items()))


def _cell(history: dict[float, float], target: float) -> tuple[float, float] | None:
    """The lowest two neighbouring doses between which the KL rises through the target."""
    doses = sorted(history)
    for lower, upper in itertools.pairwise(doses):
        if history[lower] < target <= history[upper]:
            return lower, upper
    return None


def _refined(
    cell: tuple[float, float], history: dict[float, float], settings: CalibrateSettings
) -> list[float]:
    """Doses inside the cell: its middle, and near and far on both sides of the log-log estimate."""
    low, high = map(math.log, cell)
    kl_low, kl_high = (max(history[c], 1e-12) for c in cell)
    share = 0.5
    if math.isfinite(kl_high):
        share = math.log(settings.target_kl / kl_low) / math.log(kl_high / kl_low)
    estimate, middle = low + share * (high - low), (low + high) / 2
    near, far = 0.45 * settings.tolerance, (high - low) / 8
    doses = [middle, estimate - far, estimate - near, estimate + near, estimate + far]
    return [c for c in map(math.exp, doses) if cell[0] < c < cell[1]]


def _pinned(history: dict[float, float], settings: CalibrateSettings) -> Calibration:
    """What to say when the bracket holds no crossing."""
    low, high = settings.bracket
    over = history[low] >= settings.target_kl
    end, word = (low, "already more") if over else (high, "never reached")
    message = (
        f"{settings.target_kl:g} nat is {word} within the coefficients {low:g}-{high:g}: "
        f"at {end:g} the KL is {history[end]:.3g} nats. Choose another band or trait."
    )
    return Calibration(end, history[end], settings.target_kl, False, tuple(history.items()), message)


def cached(
    cache_dir: str | Path,
    lm: LanguageModel,
    trait: Trait,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    *,
    progress: Progress | None = None,
) -> Calibration:
    """`calibrate`, kept as JSON under all that determines it: weights, trait, vector, layers, prompts and
    settings.

    A damaged file is measured again. Errors: `SettingsError` when the folder cannot be written.
    """
    key = _key(lm, trait, vector, layers, prompts_ids, settings)
    path = Path(cache_dir) / f"calibration-{key}.json"
    known = _read(path)
    if known is not None:
        return known
    found = calibrate(lm, vector, layers, prompts_ids, settings, progress=progress)
    origin = {"model": lm.name, "trait": trait.name, "layers": list(layers)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps({"version": _FILE_VERSION, **origin, "calibration": asdict(found)}))
        draft.replace(path)
    except OSError as error:
        raise SettingsError(f"The calibration cannot be kept in {cache_dir}: {error.strerror}.") from error
    return found


def _read(path: Path) -> Calibration | None:
    try:
        document = json.loads(path.read_text())
        if document["version"] != _FILE_VERSION:
            return None
        values = document["calibration"]
        return Calibration(**{**values, "history": tuple(map(tuple, values["history"]))})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(
    lm: LanguageModel,
    trait: Trait,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
) -> str:
    prompts = [list(prompt) for prompt in prompts_ids]
    parts = [lm.fingerprint, trait.positive, trait.negative, list(layers), prompts, settings.model_dump()]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(vector.directions_LD.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
