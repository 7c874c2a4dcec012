"""Printing never fails: what an output cannot show is written as an escape, what nobody reads is dropped."""

import io
import os
import sys


def print_anything() -> None:
    """From now on stdout and stderr write what their encoding lacks, half a character too, as `\\u2192`; one
    that is closed takes everything."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, *, error: bool = False, end: str = "\n") -> OSError | None:
    """Print to stdout, or to stderr. Gives the reason where that cannot be written to any more, as on a full
    disk or into a pipe whose reader has gone; what follows is then dropped."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as problem:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return problem
    return None
