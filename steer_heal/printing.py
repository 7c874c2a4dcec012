"""Printing never fails: what an output cannot show is written as an escape."""

from __future__ import annotations

import io
import sys


def print_anything() -> None:
    """From now on stdout and stderr write what their encoding lacks, half a character too, as `\\u2192`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
