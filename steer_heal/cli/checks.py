"""What can be told of a command's arguments before anything slow is imported."""

from pathlib import Path

from steer_heal import data, sources
from steer_heal.cli.arguments import Namespace
from steer_heal.config import MAX_ALPHA, SettingsError, check_band, check_run_id, read_mix, sound
from steer_heal.evaluate import vignette_sets
from steer_heal.runs.jobs import LocalProcesses


def check(args: Namespace) -> None:
    """Errors: `SettingsError` for an argument that no model could be asked with. A run that goes on, or is a
    copy, has its own settings."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    if "run_id" in given:
        check_run_id(args.run_id)
    if "cache" in given:  # a command that loads the model
        sources.find(args.model)
        data.trait(args.trait)
        sound(check_band, args.band)
    if given.get("mix"):
        read_mix(args.mix, data.traits())
    if args.module == "export":
        LocalProcesses(args.runs).folder(args.run_id)
    if args.module == "vector" and Path(args.out).is_dir():
        raise SettingsError(f"{args.out} is a folder: give a file to write.")
    if not abs(given.get("alpha", 0.0)) <= MAX_ALPHA:
        raise SettingsError(f"alpha must be a number from {-MAX_ALPHA:g} to {MAX_ALPHA:g}.")
    if given.get("limit", 1) < 1:
        raise SettingsError(f"--limit must be at least 1, not {args.limit}.")
    for name in ("vignettes", "adapter", "source"):
        file = given.get(name)
        if file and not (vignette_sets.is_set(file) or Path(file).expanduser().exists()):
            raise SettingsError(f"There is no {file}: check the path.")
