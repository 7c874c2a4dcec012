"""What can be told about a run's settings before it is launched."""

from __future__ import annotations

from steer_heal import data, models
from steer_heal.config import HealSettings
from steer_heal.models import LanguageModel, band_layers


def check(settings: HealSettings, lm: LanguageModel | None = None) -> HealSettings:
    """The settings themselves. `lm`: the loaded model, where it may be the run's own.

    Raises: `SettingsError` for an unknown trait, frame or model, bad vignettes, or a band without layers.
    """
    data.trait(settings.trait)
    data.frame(settings.evaluate.frame)
    if settings.evaluate.vignettes is not None:
        data.vignettes(settings.evaluate.vignettes, condition=settings.evaluate.condition)
    if lm is not None and settings.model == lm.name:
        band_layers(lm.n_layers, settings.band)
    else:
        models.find(settings.model)
    return settings
