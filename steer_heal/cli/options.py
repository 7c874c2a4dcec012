"""Arguments that several commands share, and how bad ones are refused: one sentence, exit code 2."""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn, Protocol

from steer_heal.config import (
    AUTO,
    DEFAULT_BAND,
    DEFAULT_MODEL,
    DEFAULT_TRAIT,
    LITE_PREFIX,
    MODEL_METHODS,
    OWN_METHODS,
    SettingsError,
    check_method,
)

Namespace = argparse.Namespace


class Commands(Protocol):
    """What `add_subparsers` gives."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message[:1].upper()}{message[1:]}: see {self.prog} --help.")


def command(commands: Commands, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    """A command's parser, with `--json`."""
    made = commands.add_parser(
        name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    made.set_defaults(run=run)
    return made


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="demo, a folder, or a hub id")
    parser.add_argument("--cache", default="cache", metavar="DIR", help="keeps vectors and calibrations")


def add_trait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trait", default=DEFAULT_TRAIT, help="the axis to move along")
    parser.add_argument(
        "--band",
        type=band,
        default=DEFAULT_BAND,
        metavar="LOW-HIGH",
        help="steered layers, as fractions of depth",
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    told = ", ".join(f"{method} for {model}" for model, method in MODEL_METHODS.items())
    parser.add_argument(
        "--method",
        type=method,
        default=AUTO,
        help=f"how the vector is extracted: {', '.join(OWN_METHODS)}, or {LITE_PREFIX}NAME; auto is "
        f"{told}, else {OWN_METHODS[0]}",
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of the runs")
    parser.add_argument("--db", default="runs.duckdb", metavar="FILE", help="the store")


def band(text: str) -> tuple[float, float]:
    """`0.4-0.6` as a band."""
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no band, give one like 0.4-0.6") from error


def method(text: str) -> str:
    """The name of an extraction method."""
    try:
        return check_method(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def numbers(text: str) -> tuple[float, ...]:
    """`0,0.5,1` as numbers."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers, give some like 0,0.5,1") from error


def setting(text: str) -> tuple[list[str], Any]:
    """`train.epochs=3` as a path and a value; a value that is not JSON is text."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no setting, give one like train.epochs=3")
    try:
        return path.strip().split("."), json.loads(value)
    except ValueError:
        return path.strip().split("."), value


def nested(settings: list[tuple[list[str], Any]]) -> dict[str, Any]:
    """Settings as nested dicts, as `heal_settings` takes them."""
    made: dict[str, Any] = {}
    for path, value in settings:
        inner = made
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{'.'.join(path)} is set twice: give it once.")
        inner[path[-1]] = value
    return made
