"""Every method there is, ours and those of packages that are installed, behind one call."""

from collections.abc import Callable, Sequence

import torch

from steer_heal.config import AUTO, LITE_PREFIX, ExtractSettings, decided_method
from steer_heal.models import LanguageModel
from steer_heal.records import Trait
from steer_heal.vectors import vector
from steer_heal.vectors.bridges import installed, steering_lite
from steer_heal.vectors.methods import METHODS
from steer_heal.vectors.vector import SteeringVector

Progress = Callable[[int, int], None]


def titles(model: str) -> dict[str, str]:
    """What can be chosen now for the model: name -> what a person reads; first what is taken when nothing is
    chosen. It says where rows are steered one at a time."""
    own = {name: method.title for name, method in METHODS.items()}
    usual, without = (decided_method(AUTO, model, replies=replies) for replies in (True, False))
    besides = f"; of a trait without replies that somebody wrote {own[without]}" if usual != without else ""
    return {AUTO: f"auto ({own[usual]}{besides})"} | own | steering_lite.methods()


def version(method: str) -> str:
    """Of the code that extracts by this method: ours, and the installed package's for one of its own."""
    theirs = installed.release(installed.STEERING_LITE[0]) if method.startswith(LITE_PREFIX) else ""
    return f"{vector.VERSION} {theirs}"


def extract(
    lm: LanguageModel,
    trait: Trait,
    contexts: Sequence[str],
    settings: ExtractSettings,
    *,
    progress: Progress | None = None,
) -> SteeringVector:
    """`vector.extract` by any method. One that adds no direction gives a vector of zeros that holds its
    operator. Errors: `SettingsError`."""
    name = settings.method
    if not name.startswith(LITE_PREFIX):
        return vector.extract(lm, trait, contexts, settings, progress=progress)
    operator = steering_lite.extract(lm, trait, contexts, name, settings, progress=progress)
    meta = {
        "model": lm.name,
        "trait": trait.name,
        "method": name,
        "contexts": str(min(len(contexts), settings.n_contexts)),
        "positive": trait.positive,
        "negative": trait.negative,
        "normalized": "no",
    }
    none_L = torch.zeros(lm.n_layers)
    if operator.method in steering_lite.ADDITIVE:
        return vector.made(steering_lite.directions(operator), none_L, meta)
    return SteeringVector(torch.zeros(lm.n_layers, lm.width), none_L, none_L, meta, operator)
