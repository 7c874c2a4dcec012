"""The command line: `python -m steer_heal COMMAND`.

Results on stdout, progress on stderr; bad input is one sentence and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from steer_heal.cli.arguments import parser
from steer_heal.cli.tables import Out
from steer_heal.config import SettingsError
from steer_heal.printing import print_anything
from steer_heal.records import StoreBusy

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    print_anything()
    try:
        args = parser().parse_args(arguments)
        return import_module(f"steer_heal.cli.{args.module}").run(args, Out(as_json=args.json))
    except (SettingsError, StoreBusy) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
