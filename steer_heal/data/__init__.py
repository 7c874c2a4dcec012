"""Loads what models are asked with: traits and frames, the same for all; a `Material`'s texts.

The files that ship are taken as they are (tests/unit/test_data.py checks them). A file of a person's own, of
vignettes or with a trait, is refused by a `SettingsError` that names the file and the line. Formats:

- `traits.json`: a list of traits; `target` maps a foundation to the sign it should move by (one of the user's
  own without it is measured on its own axis, see `own_axis`); `replies`, where a trait has them, are pairs of
  what its positive and its negative pole would say.
- `scenes.json`: what replies are said to, in lists under `shared` and, where a trait wants its own, its name.
- `frames.json`: a frame by name, of `kind` "choice" (see `Frame`) or "cloze" (see `Cloze`).

A material's folder:

- `vignettes.jsonl`: one object a line, tinymfv's fields: `text`, `foundation_coarse` (or `foundation`), and
  where they apply `id` and `condition` (`other_violate`, `self_violate`); other fields are left alone. A set
  without any label will do, and then has no agreement.
- `contexts.json`: lists of user messages, as in `scenes.json`.
- `prompts.json`: what a round's answers are written to, in lists as above; beside them `plain` and
  `smalltalk` ones, which base answers, and `fixed` ones, answered for people to read.
- `held_out_prompts.json`: `prompts`, which nothing is ever trained on, and `neutral` ones.
- `facts.json`: under `facts`, objects with a `question` and its `answers`.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

from steer_heal.config import (
    AUTO_FRAME,
    DEFAULT_TRAIT,
    FOUNDATIONS,
    MAX_PROMPT_CHARS,
    MAX_UPLOAD_BYTES,
    SettingsError,
    check_text,
)
from steer_heal.data import own_traits
from steer_heal.records import Fact, Trait, Vignette

FOLDER = Path(__file__).parent
DEMO_FOLDER = FOLDER.parent / "models" / "demo" / "material"
CONDITIONS = ("other_violate", "self_violate")
CONDITION = CONDITIONS[0]
"""Of the vignettes that are measured on, unless a person names the other."""
ORDERS = ("forward", "reversed")
OWN_AXIS = "own:"
"""A frame of this and the name of a trait of the user's own asks for its two poles."""
RENAMED = {"foundations": "choice"}
"""Frames by the names that settings of older runs have for them."""
SHARED = "shared"
MAX_TRAIT_CHARS = 1_000
MAX_NAME_CHARS = 200
"""Of a vignette's id, and of what its foundation is called."""
TRAIT_TEXTS = ("name", "title", "description", "positive", "negative")

_BLANK = " \t\r\n\ufeff"
"""Files put together keep the byte-order mark that each began with."""
_NAMES = {re.sub(r"[^a-z]", "", name.lower()): name for name in FOUNDATIONS}


@dataclass(frozen=True, slots=True)
class Frame:
    """A forced choice as data: what is asked, the seven answers, and the text the answer is read after.

    `question` holds `{text}` and `{options}`; `options` are the answers in the order of `config.FOUNDATIONS`.
    `orders` names the orders (`ORDERS`) they are listed in; `option` is how one is listed (`{word}`, and
    `{index}`, its place in the list from 0) and `separator` what stands between two. What is answered is the
    option's word, or with `answer` "index" its place in the list. With `think` "full" the model
    first writes exactly `think_budget` tokens between `think_open` and `think_close`, and cannot end its turn
    before; then the user says the `nudge`, and the prefill opens a second turn. `apart`: prompt and nudge are
    encoded apart, each with every BOS that template and tokenizer begin a text with, as tinymfv does.
    """

    name: str
    question: str
    options: tuple[str, ...]
    prefill: str
    orders: tuple[str, ...] = ("forward", "reversed")
    option: str = '"{word}"'
    separator: str = ", "
    think_budget: int = 0
    think_open: str = ""
    think_close: str = ""
    think: str = "free"
    answer: str = "word"
    nudge: str = ""
    apart: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the options stand for."""
        return FOUNDATIONS

    @property
    def answers(self) -> tuple[str, ...]:
        """What is answered, in the order of the list as it is shown."""
        return tuple(map(str, range(len(self.options)))) if self.answer == "index" else self.options

    def render(self, text: str, order: str) -> str:
        """The user's message for one vignette with the answers listed in one order."""
        words = self.options if order == "forward" else self.options[::-1]
        listed = self.separator.join(
            self.option.replace("{index}", str(place)).replace("{word}", word)
            for place, word in enumerate(words)
        )
        return self.question.replace("{options}", listed).replace("{text}", text)


@dataclass(frozen=True, slots=True)
class Cloze:
    """Seven short statements as data, each scored as what the model's reply goes on with; several wordings.

    A wording is a `Frame` that lists nothing: its question holds `{text}` alone, its `options` are the
    statements in the order of `config.FOUNDATIONS`, each one beginning as it follows the prefill, spaces
    included.
    """

    name: str
    wordings: tuple[Frame, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the statements stand for."""
        return FOUNDATIONS


@dataclass(frozen=True, slots=True)
class OwnAxis(Cloze):
    """A cloze of a trait that names no foundations: each wording has a statement of either pole, which the
    reply begins with, and is scored in nats a token."""

    poles: tuple[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return self.poles

    @property
    def at_once(self) -> Frame:
        """All its statements, pair by pair, as one wording: a text is then read once for all."""
        return replace(self.wordings[0], options=tuple(text for one in self.wordings for text in one.options))


AnyFrame = Frame | Cloze


def foundation_name(name: str) -> str | None:
    """One of our seven for a spelling of it ("Social Norms", "Care (p, a)", "social_norms"), else None."""
    return _NAMES.get(re.sub(r"[^a-z]", "", re.sub(r"\(.*?\)", "", name).lower()))


def aim(text: str) -> dict[str, int]:
    """The target that is written so: Care=1, SocialNorms=-1. Errors: `SettingsError` for what is none."""
    found: dict[str, int] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, sign = part.partition("=")
        known = foundation_name(name)
        if known is None or sign.strip() not in ("1", "+1", "-1"):
            raise SettingsError(f"{part!r} is no target: write a foundation and 1 or -1, such as Care=1.")
        found[known] = int(sign)
    return found


@dataclass(frozen=True, slots=True)
class Material:
    """The texts that one kind of model is asked with, from the files in `folder`; see `material`."""

    folder: Path

    def vignettes(self, *, condition: str | None = None, limit: int | None = None) -> list[Vignette]:
        """`vignettes` of the material's own file."""
        return vignettes(self.folder / "vignettes.jsonl", condition=condition, limit=limit)

    def contexts(self, trait: str) -> list[str]:
        """What a trait's persona vector is extracted over: the trait's own user messages, then the shared."""
        return _pool(self.folder / "contexts.json", trait)

    def heal_prompts(self, trait: str) -> list[str]:
        """The prompts that a round's steered answers are written to: the trait's own, then shared ones."""
        return _pool(self.folder / "prompts.json", trait)

    def plain_prompts(self) -> list[str]:
        """Tasks, facts and everyday talk in which no trait is at stake: base's own answers to them are
        trained on beside the steered ones."""
        groups = _shipped(self.folder / "prompts.json")
        return [text for key in ("plain", "smalltalk") for text in groups.get(key, ())]

    def fixed_prompts(self) -> list[str]:
        """The prompts answered greedily after every round, so that one can read down the rounds."""
        return _shipped(self.folder / "prompts.json")["fixed"]

    def held_out_prompts(self) -> list[str]:
        """The prompts that nothing is ever trained on; the health of text is measured on answers to them."""
        return _shipped(self.folder / "held_out_prompts.json")["prompts"]

    def neutral_prompts(self) -> list[str]:
        """Everyday prompts in which nothing is at stake; nothing is trained on them either."""
        return _shipped(self.folder / "held_out_prompts.json")["neutral"]

    def facts(self) -> list[Fact]:
        """Short questions whose answers are known."""
        rows = _shipped(self.folder / "facts.json")["facts"]
        return [Fact(row["question"], tuple(row["answers"])) for row in rows]


def material(*, demo: bool) -> Material:
    """The demo's own texts, made from its templates and in its few words, or those for all other models."""
    return Material(DEMO_FOLDER if demo else FOLDER)


def vignettes(path: str | Path, *, condition: str | None = None, limit: int | None = None) -> list[Vignette]:
    """The vignettes of a JSONL file.

    `condition` keeps one condition; rows that state none belong to the one asked for. `limit` keeps that
    many, balanced over foundations, the same ones every time. `SettingsError` for a bad file or an empty set.
    """
    source = Path(path)
    if condition is not None and condition not in CONDITIONS:
        raise SettingsError(f"Unknown condition {condition!r}: choose one of {', '.join(CONDITIONS)}.")
    if limit is not None and limit < 1:
        raise SettingsError("The number of vignettes must be at least 1.")
    found: list[Vignette] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, row in _json_lines(source):
        where = f"{source.name} line {number}"
        vignette = _vignette(where, row, condition or CONDITIONS[0], f"line-{number}")
        for key, what in (((vignette.id, vignette.condition), "id"), (("text", vignette.text), "text")):
            if key in seen:
                raise SettingsError(f"{where}: the same {what} as line {seen[key]}.")
            seen[key] = number
        found.append(vignette)
    bare = [vignette.id for vignette in found if not vignette.foundation]
    if 0 < len(bare) < len(found):
        raise SettingsError(
            f"{source.name}: {len(bare)} of {len(found)} vignettes have no 'foundation_coarse', {bare[0]} "
            "for one: give each of them a label, or none."
        )
    kept = [vignette for vignette in found if condition in (None, vignette.condition)]
    if not kept:
        which = f" of condition {condition}" if condition else ""
        raise SettingsError(f"{source.name} holds no vignette{which}.")
    return kept if limit is None else balanced(kept, limit)


def balanced(rows: list[Vignette], limit: int) -> list[Vignette]:
    """At most `limit` rows, taken in turn from the foundations, in the order they stand in."""
    queues = [[row for row in rows if row.foundation == name] for name in (*FOUNDATIONS, "")]
    turns = [(place, which) for which, queue in enumerate(queues) for place in range(len(queue))]
    chosen = {queues[which][place].id for place, which in sorted(turns)[:limit]}
    return [row for row in rows if row.id in chosen][:limit]


def traits() -> dict[str, Trait]:
    """All traits by name: ours, the default one first, then the user's own whose files are sound."""
    found = bundled_traits()
    for name, file in own_traits.files().items():
        with suppress(SettingsError):  # said to whoever asks for this one
            found.setdefault(name, own_trait(file))
    return found


def trait_entry(file: Path) -> dict[str, Any]:
    """What a trait's file holds, unchecked. Errors: `SettingsError` for what is no JSON object."""
    found = _parsed(file, _read(file).lstrip(_BLANK), 1)
    if not isinstance(found, dict):
        raise SettingsError(f"{file.name}: must be a JSON object.")
    return found


def own_trait(file: Path) -> Trait:
    """The trait that a file of the user's own holds. Errors: `SettingsError` with the file's name."""
    trait = _own_entry(file.name, trait_entry(file))
    if trait.name != file.stem:
        raise SettingsError(f"{file.name}: the trait in it is called {trait.name!r}: name the file after it.")
    return trait


def checked_trait(where: str, row: dict[str, Any]) -> Trait:
    """An entry of a trait of the user's own. Errors: `SettingsError`, also for a name of ours."""
    trait = _own_entry(where, row)
    if trait.name in bundled_traits():
        raise SettingsError(f"{where}: {trait.name!r} is a trait of ours: choose another name.")
    return trait


def _own_entry(where: str, row: dict[str, Any]) -> Trait:
    return _trait(where, {"target": {}, "description": row.get("title"), **row})


def bundled_traits() -> dict[str, Trait]:
    """The traits that come with the project, the default one first."""
    found = {row["name"]: _trait("traits.json", row) for row in _shipped(FOLDER / "traits.json")}
    return dict(sorted(found.items(), key=lambda item: item[0] != DEFAULT_TRAIT))


def trait(name: str) -> Trait:
    """The trait of that name; `SettingsError` with the known ones otherwise."""
    known = bundled_traits()  # no other file is read: an answer asks for its trait again and again
    if name not in known and name in (own := own_traits.files()):
        return own_trait(own[name])
    if name not in known:
        known = traits()
        raise SettingsError(f"Unknown trait {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def check_replies(trait: Trait) -> None:
    """Errors: `SettingsError` when the trait has no paired replies, which some methods are made from."""
    if not trait.replies or not trait.scenes:
        raise SettingsError(
            f"The trait {trait.name!r} has no paired replies: write some, or choose the method mean_diff."
        )


def frames() -> tuple[str, ...]:
    """The names of all frames."""
    return tuple(_shipped(FOLDER / "frames.json"))


def frame(name: str) -> AnyFrame:
    """The frame of that name; `SettingsError` with the known ones otherwise."""
    if name.startswith(OWN_AXIS):
        return own_axis(trait(name.removeprefix(OWN_AXIS)))
    known, name = _shipped(FOLDER / "frames.json"), RENAMED.get(name, name)
    if name not in known:
        raise SettingsError(f"Unknown frame {name!r}: choose one of {', '.join(known)}.")
    row = known[name]
    if row.pop("kind") == "cloze":
        return Cloze(name, tuple(_wording(name, **wording) for wording in row["wordings"]))
    options, orders = tuple(row.pop("options")), tuple(row.pop("orders"))
    return Frame(name, options=options, orders=orders, **row)


def _wording(name: str, question: str, prefill: str, statements: dict[str, str]) -> Frame:
    return Frame(name, question, tuple(statements[key] for key in FOUNDATIONS), prefill, ("forward",))


def own_axis(trait: Trait) -> OwnAxis:
    """What a trait without foundations is measured by: its pairs of statements.

    Errors: `SettingsError` for a trait that moves foundations, or has no statements.
    """
    if not trait.on_own_axis:
        raise SettingsError(f"The trait {trait.name!r} is measured by its foundations: choose another frame.")
    if not trait.statements:
        raise SettingsError(
            f"The trait {trait.name!r} has no statements that it could be measured by: have the model draft "
            f"some, with `trait make {trait.name}`."
        )
    name, (plus, minus) = f"{OWN_AXIS}{trait.name}", trait.target
    return OwnAxis(
        name,
        tuple(Frame(name, "{text}", pair, "", ("forward",)) for pair in trait.statements),
        (plus, minus),
    )


def frame_of(trait: Trait, asked: str = AUTO_FRAME) -> str:
    """The frame that a trait is measured in where `asked` is asked for: that one, which may be `AUTO_FRAME`,
    or its own axis. Errors: `SettingsError` for one that cannot measure it."""
    own = f"{OWN_AXIS}{trait.name}"
    if trait.on_own_axis and asked in (AUTO_FRAME, own):
        return own
    if trait.on_own_axis or asked.startswith(OWN_AXIS):
        how = "on its own axis" if trait.on_own_axis else "by its foundations"
        raise SettingsError(f"The trait {trait.name!r} is measured {how}: leave the frame at {AUTO_FRAME}.")
    return asked


def _trait(where: str, row: dict[str, Any]) -> Trait:
    values = {key: _text(where, row, key, MAX_TRAIT_CHARS) for key in TRAIT_TEXTS}
    target = row.get("target")
    if not isinstance(target, dict):
        raise SettingsError(f"{where}: 'target' must map a foundation to 1 or -1.")
    for name, sign in target.items():
        if name not in FOUNDATIONS or sign not in (1, -1):
            raise SettingsError(f"{where}: 'target' holds {name!r}: {sign!r}; give a foundation and 1 or -1.")
    if values["positive"] == values["negative"]:
        raise SettingsError(f"{where}: the two personas are the same.")
    replies, statements = (_pairs(where, key, row.get(key, [])) for key in ("replies", "statements"))
    said_to = _texts(f"{where} 'scenes'", row["scenes"]) if "scenes" in row else None
    scenes = tuple(said_to or _pool(FOLDER / "scenes.json", values["name"])) if replies else ()
    poles = own_traits.names(values["positive"], values["negative"])
    target = target or dict(zip(poles, (1, -1), strict=True))
    drafted = row.get("replies_drafted", False)
    if not isinstance(drafted, bool):
        raise SettingsError(f"{where}: 'replies_drafted' must be true or false.")
    pairs = {"replies": replies, "replies_drafted": drafted, "statements": statements}
    return Trait(**values, target=dict(target), scenes=scenes, **pairs)


def _pairs(where: str, key: str, pairs: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(pairs, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise SettingsError(f"{where}: {key!r} must be a list of pairs, each [positive, negative].")
    if pairs:
        _texts(f"{where} {key!r}", [reply for pair in pairs for reply in pair])
    return tuple((positive, negative) for positive, negative in pairs)


def _vignette(where: str, row: dict[str, Any], condition: str, fallback_id: str) -> Vignette:
    text = _text(where, row, "text", MAX_PROMPT_CHARS)
    label = row.get("foundation_coarse") or row.get("foundation") or ""
    foundation = foundation_name(str(label)[:MAX_NAME_CHARS]) if label else ""
    if foundation is None:
        raise SettingsError(
            f"{where}: {label[:40]!r} is no foundation; give one of {', '.join(FOUNDATIONS)}."
        )
    stated = row.get("condition") or condition
    if stated not in CONDITIONS:
        raise SettingsError(f"{where}: 'condition' must be one of {', '.join(CONDITIONS)}.")
    name = row.get("id") or fallback_id
    if not isinstance(name, str | int | float) or len(str(name)) > MAX_NAME_CHARS:
        raise SettingsError(f"{where}: 'id' must be text of at most {MAX_NAME_CHARS} characters.")
    return Vignette(id=_whole(where, str(name)), foundation=foundation, text=text, condition=stated)


def _pool(source: Path, trait: str) -> list[str]:
    """The texts under the trait's name, then those under 'shared', each once."""
    groups = _shipped(source)
    return list(dict.fromkeys([*groups.get(trait, ()), *groups[SHARED]]))


def _texts(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise SettingsError(f"{where}: must be a list of texts.")
    for number, text in enumerate(value, 1):
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_PROMPT_CHARS:
            raise SettingsError(f"{where} entry {number}: must be text of 1-{MAX_PROMPT_CHARS} characters.")
        _whole(f"{where} entry {number}", text)
        if text in value[: number - 1]:
            raise SettingsError(f"{where} entry {number}: the same text as entry {value.index(text) + 1}.")
    return value


def _text(where: str, row: dict[str, Any], key: str, longest: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{where}: {key!r} is missing or empty.")
    if len(value) > longest:
        raise SettingsError(f"{where}: {key!r} has {len(value)} characters, at most {longest} are allowed.")
    return _whole(where, value)


def _whole(where: str, text: str) -> str:
    try:
        return check_text(text)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}.") from error


def _json_lines(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_read(source).split("\n"), 1):
        if not line.strip(_BLANK):
            continue
        row = _parsed(source, line.strip(_BLANK), number)
        if not isinstance(row, dict):
            raise SettingsError(f"{source.name} line {number}: must be a JSON object.")
        yield number, row


def _shipped(source: Path) -> Any:
    """What a JSON file of ours holds."""
    return json.loads(source.read_text(encoding="utf-8"))


def _parsed(source: Path, text: str, line: int) -> Any:
    """What the JSON says that begins in that line of the file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # what is too deep or too long is said in `str(error)`
        line += getattr(error, "lineno", 1) - 1
        why = getattr(error, "msg", str(error).partition(";")[0])
        raise SettingsError(f"{source.name} line {line}: not JSON ({why}).") from error


def _read(source: Path) -> str:
    """The file's text; UTF-8, or with a byte-order mark what that says."""
    try:
        if source.stat().st_size > MAX_UPLOAD_BYTES:
            most = MAX_UPLOAD_BYTES // 10**6
            raise SettingsError(f"{source.name} is too large: a file of texts has at most {most} MB.")
        raw = source.read_bytes()
        return TextIOWrapper(BytesIO(raw), encoding=json.detect_encoding(raw)).read()
    except OSError as error:
        raise SettingsError(f"Cannot read {source}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{source} is not UTF-8 text.") from error
