"""c*: the coefficient at which steering moves the next token by one nat, at the 95th percentile."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer_heal.config import CalibrateSettings, SampleSettings, SettingsError, build
from steer_heal.data import measurements
from steer_heal.generate import PrefixStore, Row, complete
from steer_heal.models import LanguageModel, digest
from steer_heal.records import Calibration, Trait
from steer_heal.vectors.steering import Operator, coefficients
from steer_heal.vectors.vector import SteeringVector

Progress = Callable[[int, int], None]
Measure = Callable[[Sequence[float]], list[float]]
_ROWS = 64
_LEAST_KL = 1e-12
_GRID = 9
_FIRST = (1 / 1.25, 1.25)
"""Where the first measured doses lie, beside the scout's estimate."""
_ROUNDING = 1e-9
"""What keeps a cell made as wide as allowed from being a little wider."""
_PASSES = 4
"""About how many passes a search takes."""
VERSION = 1
"""To be raised by hand with every change of what `calibrate` gives or of how it is kept: no older c* is then
found again."""


def calibrate(
    lm: LanguageModel,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    *,
    progress: Progress | None = None,
    pause: Callable[[], None] | None = None,
) -> Calibration:
    """The least c with quantile_t KL(steered(c) || base) = `target_kl` nats, t the tokens of greedy rollouts.

    When an end of the bracket is hit, `reached` is False, c* is that end and `message` gives the KL there.
    `progress` hears of passes; `pause` is called before every token, and may end it all by raising.
    Errors: `SettingsError` without prompts or without layers.
    """
    if not prompts_ids or not layers:
        raise SettingsError("Calibration needs at least one prompt and one layer.")
    store = PrefixStore(settings.n_prompts, every_layer=False)
    measure, scout = (
        measurement(lm, vector, layers, prompts_ids, how, store, pause)
        for how in (settings, _scouting(settings))
    )
    found = search(measure, settings, scout=scout, progress=progress)
    return replace(found, residual_norm=float(vector.residual_norms_L[list(layers)].mean()))


def calibrate_each(
    lm: LanguageModel,
    directions_MLD: Tensor,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    *,
    pause: Callable[[], None] | None = None,
) -> list[Calibration]:
    """c* of each of M vectors as `calibrate` finds it; a pass measures what all searches want in one
    batch."""
    store = PrefixStore(settings.n_prompts, every_layer=False)
    searches = [search_steps(settings) for _ in directions_MLD]
    wanted = {m: next(steps) for m, steps in enumerate(searches)}
    found: dict[int, Calibration] = {}
    how = _scouting(settings)
    while wanted:
        asked = [(m, c) for m, doses in wanted.items() for c in doses]
        rows_LM = [_one_of(coefficients(lm.n_layers, layers, c)[0], m, len(searches)) for m, c in asked]
        kls = iter(_quantiles(lm, directions_MLD, rows_LM, prompts_ids, how, store, pause))
        sent = {m: [next(kls) for _ in doses] for m, doses in wanted.items()}
        wanted, how = {}, settings
        for m, some in sent.items():
            try:
                wanted[m] = searches[m].send(some)
            except StopIteration as end:
                found[m] = end.value
    return [found[m] for m in range(len(searches))]


def _one_of(row_L: Tensor, m: int, n_vectors: int) -> Tensor:
    """The row's coefficients as those of vector m among several: (L, M), zeros for the others."""
    row_LM = torch.zeros(len(row_L), n_vectors)
    row_LM[:, m] = row_L
    return row_LM


def _scouting(settings: CalibrateSettings) -> CalibrateSettings:
    """Two fifths of the tokens of a quarter of the prompts: enough to see where to look."""
    shorter = {"n_tokens": -(-2 * settings.n_tokens // 5), "n_prompts": -(-settings.n_prompts // 4)}
    return settings.model_copy(update=shorter)


def measurement(
    lm: LanguageModel,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    store: PrefixStore | None = None,
    pause: Callable[[], None] | None = None,
) -> Measure:
    """From coefficients to the quantile of KL(steered || base) at each, in nats, all in one batch."""

    def measure(doses: Sequence[float]) -> list[float]:
        rows_L = [coefficients(lm.n_layers, layers, c)[0] for c in doses]
        return _quantiles(lm, vector.steers, rows_L, prompts_ids, settings, store, pause)

    return measure


def _quantiles(
    lm: LanguageModel,
    directions: Tensor | Operator,
    rows: Sequence[Tensor],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    store: PrefixStore | None,
    pause: Callable[[], None] | None,
) -> list[float]:
    """For each row of coefficients the quantile of KL(steered || base) over greedy answers to the prompts."""

    def go_on() -> bool:
        if pause:
            pause()
        return False

    prompts = [tuple(prompt) for prompt in prompts_ids][: settings.n_prompts]
    sample = build(SampleSettings, max_new_tokens=settings.n_tokens, greedy=True)
    asked = [Row(prompt, row, shadow=True) for row in rows for prompt in prompts]
    written = complete(lm, asked, directions, sample, batch_size=_ROWS, store=store, stop=go_on)
    kls = [[token.kl for token in answer.tokens if token.kl is not None] for answer in written]
    per_row = [kls[start : start + len(prompts)] for start in range(0, len(kls), len(prompts))]
    return [quantile([*itertools.chain(*group)], settings.quantile) for group in per_row]


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours; not a number (a broken model) counts as infinite."""
    numbers = torch.tensor(values, dtype=torch.float64).nan_to_num(nan=math.inf)
    return float(torch.quantile(numbers, q))


def search(
    measure: Measure,
    settings: CalibrateSettings,
    *,
    scout: Measure | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """The dose at which `measure` rises through the target, within the tolerance.

    `scout`, a cheaper `measure`, finds the lowest crossing on a grid even in log c. Then a few doses a
    pass are measured around where log KL against log c crosses, further out where the scout misled, until
    the crossing lies between two measured doses closer than the tolerance. The better of the two is c*.
    """
    steps, how = search_steps(settings), scout or measure
    doses = next(steps)
    for number in itertools.count(1):
        try:
            doses = steps.send(how(doses))
        except StopIteration as end:
            return end.value
        how = measure
        if progress:
            progress(number, max(_PASSES, number + 1))
    raise AssertionError("unreachable")


def search_steps(settings: CalibrateSettings) -> Generator[list[float], list[float], Calibration]:
    """The search of `search` as a conversation: it yields the doses to measure next, is sent their KLs in
    nats, and returns what it found. The first doses may be measured by a cheaper scout."""
    history: dict[float, float] = {}
    low, high = settings.bracket
    grid = [low * (high / low) ** (i / (_GRID - 1)) for i in range(_GRID)]
    scouted = dict(zip(grid, (yield grid), strict=True))
    cell = _cell(scouted, settings.target_kl)
    doses = [low, high]
    if cell is not None:
        estimate = _estimate(cell, scouted, settings.target_kl)
        doses = [min(high, max(low, estimate * factor)) for factor in _FIRST]
    width = math.inf
    while doses:
        fresh = [c for c in dict.fromkeys(doses) if c not in history]
        history.update(zip(fresh, (yield fresh), strict=True))
        cell = _cell(history, settings.target_kl)
        before, width = width, math.log(cell[1] / cell[0]) if cell else math.inf
        doses = (
            _inside(cell, history, settings, width > before / 1.5) if cell else _outside(history, settings)
        )
    if cell is None:
        return _pinned(history, settings)
    best = min(cell, key=lambda c: abs(history[c] - settings.target_kl))
    return Calibration(best, history[best], settings.target_kl, True, tuple(history.items()))


def _cell(history: dict[float, float], target: float) -> tuple[float, float] | None:
    """The lowest two neighbouring doses between which the KL rises through the target."""
    for lower, upper in itertools.pairwise(sorted(history)):
        if history[lower] < target <= history[upper]:
            return lower, upper
    return None


def _estimate(cell: tuple[float, float], history: dict[float, float], target: float) -> float:
    """Where log KL, linear in log c between the ends of the cell, is the target's."""
    low, high = map(math.log, cell)
    kl_low, kl_high = (max(history[c], _LEAST_KL) for c in cell)
    share = math.log(target / kl_low) / math.log(kl_high / kl_low) if math.isfinite(kl_high) else 0.5
    return math.exp(low + share * (high - low))


def _inside(
    cell: tuple[float, float], history: dict[float, float], settings: CalibrateSettings, stalled: bool
) -> list[float]:
    """The next doses, none when done: the estimate, and three tolerances to either side of it; then two
    that cut what is left into thirds, each within the tolerance.

    `stalled`: the last doses hardly narrowed the cell, as where KL jumps; then its thirds and the estimate.
    """
    ratio = cell[1] / cell[0]
    if ratio <= 1 + settings.tolerance:
        return []
    estimate = _estimate(cell, history, settings.target_kl)
    near, third = (1 + settings.tolerance) ** 3, ratio ** (1 / 3)
    edge = min(near, ratio**0.1)
    if ratio <= near:
        return [cell[0] * third, cell[1] / third]
    if stalled or edge**2 > ratio / near**2:
        doses = [cell[0] * third, estimate, cell[1] / third]
    else:
        spread = near * (1 - _ROUNDING)
        doses = [
            min(cell[1] / edge, max(cell[0] * edge, c))
            for c in (estimate / spread, estimate, estimate * spread)
        ]
    return [c for c in doses if cell[0] < c < cell[1]]


def _outside(history: dict[float, float], settings: CalibrateSettings) -> list[float]:
    """The next dose when all lie on one side: further out, then the bracket's end, then none."""
    low, high = settings.bracket
    lowest, highest = min(history), max(history)
    if history[lowest] >= settings.target_kl:
        end, further = low, lowest**2 / highest
    else:
        end, further = high, highest**2 / lowest
    if end in history:
        return []
    return [further if low < further < high else end]


def _pinned(history: dict[float, float], settings: CalibrateSettings) -> Calibration:
    """What to say when the bracket holds no crossing."""
    low, high = settings.bracket
    over = history[min(history)] >= settings.target_kl
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
    pause: Callable[[], None] | None = None,
) -> Calibration:
    """`calibrate`, kept as JSON under all that decides it: model, trait, vector, layers, prompts, settings
    and the version of what we do.

    A damaged file is measured again. Errors: `SettingsError` when the folder cannot be written.
    """
    name = f"calibration-{_key(lm, trait, vector, layers, prompts_ids, settings)}.json"
    known = measurements.read(cache_dir, name, _calibration)
    if known is not None:
        return known
    found = calibrate(lm, vector, layers, prompts_ids, settings, progress=progress, pause=pause)
    origin = {"model": lm.name, "trait": trait.name, "layers": list(layers)}
    measurements.write(cache_dir, name, {**origin, "calibration": asdict(found)})
    return found


def _calibration(document: Any) -> Calibration:
    values = document["calibration"]
    return Calibration(**{**values, "history": tuple(map(tuple, values["history"]))})


def _key(
    lm: LanguageModel,
    trait: Trait,
    vector: SteeringVector,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
) -> str:
    prompts = [list(prompt) for prompt in prompts_ids]
    added = hashlib.sha256(vector.directions_LD.contiguous().numpy().tobytes()).hexdigest()
    what = (added, vector.residual_norms_L.tolist(), getattr(vector.operator, "fingerprint", ""))
    return digest(VERSION, lm.fingerprint, asdict(trait), list(layers), prompts, settings.model_dump(), *what)
