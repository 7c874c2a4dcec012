"""c*: the coefficient at which steering moves the next token by one nat, at the 95th percentile."""

import hashlib
import itertools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from steer_heal.config import EVERYWHERE, CalibrateSettings, SampleSettings, SettingsError, build
from steer_heal.data import measurements
from steer_heal.generate import PrefixStore, Row, complete
from steer_heal.models import LanguageModel, digest
from steer_heal.records import Calibration, Trait
from steer_heal.vectors.steering import Operator, coefficients, n_mixed
from steer_heal.vectors.vector import SteeringVector

Progress = Callable[[int, int], None]
Measure = Callable[[Sequence[tuple[int, float]]], list[float]]
"""From doses, each with the number of the search that wants it, to the KL at each in nats."""
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

    (found,) = calibrate_each(
        lm, vector.steers, layers, prompts_ids, settings, progress=progress, pause=pause
    )
    return replace(found, residual_norm=float(vector.residual_norms_L[list(layers)].mean()))


def calibrate_each(
    lm: LanguageModel,
    directions: Tensor | Operator,
    layers: Sequence[int],
    prompts_ids: Sequence[Sequence[int]],
    settings: CalibrateSettings,
    *,
    progress: Progress | None = None,
    pause: Callable[[], None] | None = None,
) -> list[Calibration]:
    """c* of each of M vectors (M, L, D), or of what steers alone, as `calibrate` finds it; a pass measures
    what all searches want in one batch."""
    several = n_mixed(directions)
    store = PrefixStore(settings.n_prompts, every_layer=False)

    def row(m: int, c: float) -> Tensor:
        """The coefficients by which the m-th alone is added, c times."""
        alone_L = coefficients(lm.n_layers, layers, c)[0]
        if not several:
            return alone_L
        made_LM = torch.zeros(lm.n_layers, *several)
        made_LM[:, m] = alone_L
        return made_LM

    def measured(how: CalibrateSettings) -> Measure:
        def measure(asked: Sequence[tuple[int, float]]) -> list[float]:
            return kls(
                lm, directions, [row(*one) for one in asked], prompts_ids, how, store=store, pause=pause
            )

        return measure

    n, scout = (several or (1,))[0], measured(_scouting(settings))
    return search(n, measured(settings), settings, scout=scout, progress=progress)


def kls(
    lm: LanguageModel,
    directions: Tensor | Operator,
    doses: Sequence[Tensor],
    prompts_ids: Sequence[Sequence[int]],
    how: CalibrateSettings,
    *,
    where: str = EVERYWHERE,
    store: PrefixStore | None = None,
    pause: Callable[[], None] | None = None,
) -> list[float]:
    """Of each dose, a row's coefficients, the quantile of KL(steered || base) over greedy answers to the
    prompts, in nats; all in one batch. `pause` as in `calibrate`."""
    prompts = [tuple(prompt) for prompt in prompts_ids][: how.n_prompts]
    sample = build(SampleSettings, max_new_tokens=how.n_tokens, greedy=True)

    def go_on() -> bool:
        if pause:
            pause()
        return False

    rows = [Row(prompt, dose_L, shadow=True, where=where) for dose_L in doses for prompt in prompts]
    written = complete(lm, rows, directions, sample, batch_size=_ROWS, store=store, stop=go_on)
    found = [[token.kl for token in answer.tokens if token.kl is not None] for answer in written]
    per_dose = [found[start : start + len(prompts)] for start in range(0, len(found), len(prompts))]
    return [quantile([*itertools.chain(*group)], how.quantile) for group in per_dose]


def _scouting(settings: CalibrateSettings) -> CalibrateSettings:
    """Two fifths of the tokens of a quarter of the prompts: enough to see where to look."""
    shorter = {"n_tokens": -(-2 * settings.n_tokens // 5), "n_prompts": -(-settings.n_prompts // 4)}
    return settings.model_copy(update=shorter)


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours; not a number (a broken model) counts as infinite."""
    numbers = torch.tensor(values, dtype=torch.float64).nan_to_num(nan=math.inf)
    return float(torch.quantile(numbers, q))


def search(
    n: int,
    measure: Measure,
    settings: CalibrateSettings,
    *,
    scout: Measure | None = None,
    progress: Progress | None = None,
) -> list[Calibration]:
    """The dose at which `measure` rises through the target, within the tolerance, in each of `n` searches.

    `scout`, a cheaper `measure`, finds the lowest crossing on a grid even in log c. Then a few doses a
    pass are measured around where log KL against log c crosses, further out where the scout misled, until
    the crossing lies between two measured doses closer than the tolerance. The better of the two is c*.
    """
    searches, found = [_steps(settings) for _ in range(n)], dict[int, Calibration]()
    wanted, how = {m: next(steps) for m, steps in enumerate(searches)}, scout or measure
    for number in itertools.count(1):
        kls = iter(how([(m, c) for m, doses in wanted.items() for c in doses]))
        sent = {m: [next(kls) for _ in doses] for m, doses in wanted.items()}
        wanted, how = {}, measure
        for m, some in sent.items():
            try:
                wanted[m] = searches[m].send(some)
            except StopIteration as end:
                found[m] = end.value
        if not wanted:
            break
        if progress:
            progress(number, max(_PASSES, number + 1))
    return [found[m] for m in range(n)]


def _steps(settings: CalibrateSettings) -> Generator[list[float], list[float], Calibration]:
    """One search as a conversation: it yields the doses to measure next, is sent their KLs in
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
    added = hashlib.sha256(vector.directions_LD.contiguous().numpy().tobytes()).hexdigest()
    what = (added, vector.residual_norms_L.tolist(), getattr(vector.operator, "fingerprint", ""))
    prompts = [list(prompt) for prompt in prompts_ids]
    told = trait.decides(), list(layers), prompts, settings.model_dump()
    name = f"calibration-{digest(VERSION, lm.fingerprint, *told, *what)}.json"
    known = measurements.read(cache_dir, name, "calibration", Calibration)
    if known is not None:
        return known
    found = calibrate(lm, vector, layers, prompts_ids, settings, progress=progress, pause=pause)
    origin = {"model": lm.name, "trait": trait.name, "layers": list(layers)}
    measurements.write(cache_dir, name, {**origin, "calibration": asdict(found)})
    return found
