"""What can be told about a run's settings before it is launched."""

from importlib import import_module
from pathlib import Path

from steer_heal import data, sources
from steer_heal.config import (
    AUTO_FRAME,
    MAX_RUN_NAME_CHARS,
    REPLIES,
    HealSettings,
    SettingsError,
    changed,
    decided_method,
    read_mix,
)
from steer_heal.evaluate import vignette_sets
from steer_heal.records import Trait


def check(settings: HealSettings, *, loaded: bool = False, files_in: Path | None = None) -> HealSettings:
    """The settings, with the extraction method that the run's model gets where they say `AUTO`, which each
    trait of a mix decides by itself; a run of a mix without a name is named by it.

    `loaded`: whether the run's model is in use, so that it need not be found; `files_in`: the folder in which
    files that they name must lie (somebody at a page may name only those, a command line any).

    Raises: `SettingsError` for an unknown trait (also in the mix), frame or model, or bad vignettes.
    """
    trait = data.trait(settings.trait)
    if (frame := data.frame_of(trait, settings.evaluate.frame)) != AUTO_FRAME:
        data.frame(frame)
    file = settings.evaluate.vignettes
    if file is not None:
        if files_in is not None and not vignette_sets.is_set(file) and not _inside(file, files_in):
            raise SettingsError(
                f"The vignettes' file {file} must lie where the page was started: copy it there."
            )
        vignette_sets.named(file, condition=data.CONDITION)
    if not loaded:
        sources.find(settings.model)
    method, names = settings.extract.method, [settings.trait]
    if settings.mix:
        names = list(read_mix(settings.mix, data.traits()).traits)
        settings = changed(settings, name=settings.name or settings.mix[:MAX_RUN_NAME_CHARS])
    decided = {name: _method(method, settings.model, data.trait(name)) for name in names}
    return settings if settings.mix else changed(settings, extract={"method": decided[settings.trait]})


def _method(method: str, model: str, trait: Trait) -> str:
    method = decided_method(method, model, replies=trait.by_replies)
    if method == REPLIES:
        data.check_replies(trait)
    return method


def run_bytes(settings: HealSettings) -> int | None:
    """What `heal.memory` says that a run needs; it brings the network's libraries, which takes seconds."""
    return import_module("steer_heal.heal.memory").run_bytes(settings)


def _inside(file: str, folder: Path) -> bool:
    return (folder / Path(file).expanduser()).resolve().is_relative_to(folder.resolve())
