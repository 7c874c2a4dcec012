"""The command line: `python -m steer_heal COMMAND`.

Results on stdout, progress on stderr; bad input is one sentence and exit code 2.
"""

from collections.abc import Sequence
from importlib import import_module

from steer_heal.cli.arguments import parser
from steer_heal.cli.checks import check
from steer_heal.cli.tables import Out
from steer_heal.config import SettingsError
from steer_heal.printing import print_anything, say
from steer_heal.records import StoreBusy

BAD_INPUT = 2
NOT_WRITTEN = 1
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    print_anything()
    try:
        args = parser().parse_args(arguments)
        check(args)
        out = Out(as_json=args.json)
        code = import_module(f"steer_heal.cli.{args.module}").run(args, out)
    except (SettingsError, StoreBusy) as error:
        say(str(error), error=True)
        return BAD_INPUT
    except KeyboardInterrupt:
        say("Stopped.", error=True)
        return INTERRUPTED
    if out.lost is None or isinstance(out.lost, BrokenPipeError):  # as `head` ends what it reads
        return code
    say(f"Not all could be written ({out.lost.strerror}): choose another place for the output.", error=True)
    return code or NOT_WRITTEN
