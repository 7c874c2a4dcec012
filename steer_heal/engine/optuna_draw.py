"""Optuna draws the cells of a sweep one by one, towards the front of movement against damage."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

from steer_heal.config import SettingsError
from steer_heal.config.axes import SEED, Axes

AGAIN = 8
"""How often Optuna is asked once more when it draws what was drawn before; then the first that was not."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A cell that was drawn: its values, whether it has ended, and the movement of the trait and the damage
    (KL from base on neutral prompts, nats a token) that it came to, None where it failed or goes on."""

    values: dict[str, Any]
    ended: bool
    found: tuple[float, float] | None


def drawn(varied: Axes, tried: Sequence[Tried], seed: int) -> dict[str, Any] | None:
    """The values of the next cell, the same ones for the same arguments; None where all have been drawn.

    By Optuna's TPE for two objectives, more movement and less damage; values that are numbers have an order.
    Errors: `SettingsError` where Optuna is not installed, and for an axis of seeds.
    """
    optuna = check(varied)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(seed + len(tried)) % 2**32, constant_liar=True)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    ordered = {name: sorted(values) if _numbers(values) else values for name, values in varied.items()}
    scales = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        if _numbers(values)
        else optuna.distributions.CategoricalDistribution([json.dumps(value) for value in values])
        for name, values in ordered.items()
    }
    states = optuna.trial.TrialState
    for one in tried:
        done = states.COMPLETE if one.found else states.FAIL if one.ended else states.RUNNING
        places = {
            name: ordered[name].index(value) if _numbers(ordered[name]) else json.dumps(value)
            for name, value in one.values.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=done, params=places, distributions=scales, values=one.found and [*one.found]
            )
        )
    known = [one.values for one in tried]
    for _ in range(AGAIN):
        asked = study.ask(scales).params
        values = {
            name: ordered[name][place] if _numbers(ordered[name]) else json.loads(place)
            for name, place in asked.items()
        }
        if values not in known:
            return values
    every = (dict(zip(varied, values, strict=True)) for values in product(*varied.values()))
    return next((values for values in every if values not in known), None)


def check(varied: Axes) -> Any:
    """Optuna itself. Errors: `SettingsError` where it is not installed, or has nothing to draw."""
    if SEED in varied:
        raise SettingsError("Optuna draws settings, and a seed is none: leave the axis seed out.")
    try:
        return import_module("optuna")
    except ImportError as error:
        raise SettingsError(
            "Optuna is not installed: pip install 'steer-heal[optuna]', or draw the whole grid."
        ) from error


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
