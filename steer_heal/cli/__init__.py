"""The command line: `python -m steer_heal COMMAND`.

Results on stdout, progress on stderr; bad input is one sentence and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from steer_heal.cli import doctor, dose, evaluate, export, heal, readings, results, store, vector
from steer_heal.cli.options import Parser
from steer_heal.cli.tables import Out
from steer_heal.config import SettingsError
from steer_heal.printing import print_anything
from steer_heal.store import StoreBusy

COMMANDS = (heal, dose, evaluate, vector, results, readings, store, export, doctor)
BAD_INPUT = 2
INTERRUPTED = 130


def parser() -> Parser:
    """The parser of all commands."""
    made = Parser(prog="python -m steer_heal", description="Steer, break and heal a language model.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        module.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    print_anything()
    try:
        args = parser().parse_args(arguments)
        return args.run(args, Out(as_json=args.json))
    except (SettingsError, StoreBusy) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
