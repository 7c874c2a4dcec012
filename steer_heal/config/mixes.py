"""Mixes: several vectors at once, written as an expression, such as `0.8 warm - 0.4 formal @answer`.

    mix  = [-] term {(+ | -) term} [@ gate]
    term = [number [*]] (trait | trait without trait | ablate trait)

A number is a dose in units of the trait's c*, 1 where it is left out. `a without b` is the part of a's vector
that is orthogonal to b's. `ablate a` takes away what the residual has along a's vector, by its number: all of
it at 1, none at 0.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator

from steer_heal.config.base import MAX_ALPHA, SettingsError
from steer_heal.config.gates import EVERYWHERE, FORMS, check_gate

MAX_MIXED = 4
MAX_MIX_CHARS = 240
_WITHOUT, _ABLATE = "without", "ablate"
_TOKEN = re.compile(r"\s*(?:(?P<word>[\w.]+(?:-[\w.]+)*)|(?P<mark>\S))")
_NUMBER = re.compile(r"\d+\.?\d*|\.\d+")


@dataclass(frozen=True, slots=True)
class Term:
    """One vector of a mix, and how much of it."""

    weight: float
    trait: str
    without: str = ""
    ablates: bool = False

    @property
    def vector(self) -> str:
        """The term without its number, as it is written."""
        if self.ablates:
            return f"{_ABLATE} {self.trait}"
        return f"{self.trait} {_WITHOUT} {self.without}" if self.without else self.trait


@dataclass(frozen=True, slots=True)
class Mix:
    """An expression that was read; `where` is its gate."""

    terms: tuple[Term, ...]
    where: str = EVERYWHERE

    @property
    def traits(self) -> tuple[str, ...]:
        """The names of all that it is made of, each once."""
        named = (name for term in self.terms for name in (term.trait, term.without) if name)
        return tuple(dict.fromkeys(named))

    @property
    def adds(self) -> tuple[str, ...]:
        """The traits that it pushes towards, the one of which it adds most first."""
        added = [term for term in self.terms if term.weight > 0.0 and not term.ablates]
        return tuple(dict.fromkeys(term.trait for term in sorted(added, key=lambda term: -term.weight)))

    def __str__(self) -> str:
        said = written([(term.weight, term.vector) for term in self.terms])
        return said if self.where == EVERYWHERE else f"{said} @{self.where}"


def written(terms: Collection[tuple[float, str]]) -> str:
    """The expression of these numbers and vectors."""
    said = "".join(f" {'-' if weight < 0 else '+'} {abs(weight):g} {vector}" for weight, vector in terms)
    return f"-{said[3:]}" if said.startswith(" -") else said[3:]


def read_mix(text: str, known: Collection[str] | None = None) -> Mix:
    """What the expression says. `known`: the traits that there are, where their names are to be checked.

    Errors: `SettingsError` with the place, what was expected there, and the nearest names of an unknown one.
    """
    if len(text) > MAX_MIX_CHARS:
        raise SettingsError(f"The mix has {len(text)} characters: shorten it to {MAX_MIX_CHARS} or fewer.")
    reader = _Reader(text, known)
    terms = [reader.term(reader.takes("-"))]
    while reader.next in ("+", "-"):
        terms.append(reader.term(reader.take() == "-"))
    where = EVERYWHERE
    if reader.takes("@"):
        where = reader.gate()
    elif reader.next:
        raise reader.expected("+, - or @")
    mix = Mix(tuple(terms), where)
    if len(mix.traits) > MAX_MIXED:
        raise SettingsError(
            f"The mix has {len(mix.traits)} vectors ({', '.join(mix.traits)}): leave out all but {MAX_MIXED}."
        )
    return mix


class _Reader:
    """The words and marks of an expression, one after the other."""

    def __init__(self, text: str, known: Collection[str] | None) -> None:
        self._text, self._known, self._at = text, known, 0

    @property
    def next(self) -> str:
        """The next word or mark, empty at the end."""
        found = _TOKEN.match(self._text, self._at)
        return found[0].strip() if found else ""

    def take(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        self._at = found.end() if found else len(self._text)
        return found[0].strip() if found else ""

    def takes(self, wanted: str) -> bool:
        """Whether that comes next; it is then taken."""
        there = self.next == wanted
        if there:
            self.take()
        return there

    def expected(self, what: str) -> SettingsError:
        place = len(self._text) - len(self._text[self._at :].lstrip()) + 1
        found = f"not {self.next[:40]!r}" if self.next else "not its end"
        return SettingsError(f"The mix, character {place}: expected {what}, {found}.")

    def term(self, negative: bool) -> Term:
        weight = 1.0
        if _NUMBER.fullmatch(self.next):
            if float(self.next) > MAX_ALPHA:
                raise self.expected(f"a dose of at most {MAX_ALPHA:g}")
            weight = float(self.take())
            self.takes("*")
        ablates = self.takes(_ABLATE)
        trait = self._name()
        without = "" if ablates or not self.takes(_WITHOUT) else self._name()
        if without == trait:
            raise SettingsError(f"The mix: {trait} without itself is nothing, name another trait.")
        return Term(-weight if negative else weight, trait, without, ablates)

    def _name(self) -> str:
        name = self.next
        if not re.match(r"\w", name) or name in (_WITHOUT, _ABLATE) or _NUMBER.fullmatch(name):
            raise self.expected("a number or a trait's name")
        if self._known is not None and name not in self._known:
            near = get_close_matches(name, self._known, n=3, cutoff=0.4)
            raise self.expected(f"a trait (nearest: {', '.join(near)})" if near else "a trait that there is")
        return self.take()

    def gate(self) -> str:
        try:
            return check_gate(self._text[self._at :])
        except ValueError:
            raise self.expected(f"after @ one of {FORMS}") from None


def check_mix(text: str) -> str:
    """The expression as it is; `ValueError` for what is none. Blanks are no mix. Names are not checked."""
    if not text.strip():
        return ""
    try:
        read_mix(text)
    except SettingsError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return text


MixText = Annotated[str, AfterValidator(check_mix)]


def one_gate(mix: str, where: str) -> str:
    """Which tokens are steered, as the mix or `where` says; `ValueError` where both do, differently."""
    said = read_mix(mix).where if mix else EVERYWHERE
    if EVERYWHERE not in (said, where) and said != where:
        raise ValueError(f"the mix says @{said} and where says {where}: say it in one of the two")
    return where if said == EVERYWHERE else said
