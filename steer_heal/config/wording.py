"""What went wrong, as one sentence a person can act on."""

import reprlib
from typing import Any

REASONS = {
    "string_too_short": "is empty: type something",
    "string_too_long": "has {length} characters: shorten it to {max_length} or fewer",
    "greater_than": "must be more than {gt:g}, not {input}",
    "greater_than_equal": "must be at least {ge:g}, not {input}",
    "less_than": "must be less than {lt:g}, not {input}",
    "less_than_equal": "must be at most {le:g}, not {input}",
    "finite_number": "must be a number, not {input}",
    "float_parsing": "must be a number, not {input}",
    "float_type": "must be a number, not {input}",
    "int_parsing": "must be a whole number, not {input}",
    "int_from_float": "must be a whole number, not {input}",
    "int_type": "must be a whole number, not {input}",
    "literal_error": "must be {expected}, not {input}",
    "string_unicode": "holds half a character: remove it or write it anew",
    "extra_forbidden": "is not a setting: see --help or the settings of a run",
    "missing": "is missing",
    "too_short": "must have at least {min_length}, not {actual_length}",
    "too_long": "must have at most {max_length}, not {actual_length}",
}
"""By pydantic's name of what is wrong."""


def sentence(problem: Any, name: str) -> str:
    """pydantic's report of one problem in words: what is wrong, and what would be right."""
    where = ".".join(str(part)[:80] for part in problem["loc"]) or name
    if problem["type"] == "value_error":
        said = str(problem["ctx"]["error"])
        return f"{said[0].upper()}{said[1:]}." if where in said else f"{where}: {said}."
    given = problem["input"]
    about = {**problem.get("ctx", {}), "input": reprlib.repr(given)}
    if isinstance(given, str):
        about["length"] = len(given)
    reason = REASONS.get(problem["type"])
    return f"{where} {reason.format(**about)}." if reason else f"{where}: {problem['msg']}."


def first_line(error: BaseException) -> str:
    """What the error says on its first line, and on the next where that one only announces it, without a full
    stop; its kind too, where that is needed to understand it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".,;:")
    return f"{type(error).__name__} {said}".strip() if isinstance(error, KeyError) or not said else said
