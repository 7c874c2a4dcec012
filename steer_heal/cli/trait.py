"""`trait`: traits of one's own, from two poles in plain words; a file each, which can be shared."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer_heal import data, models
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, clean, table
from steer_heal.config import SettingsError
from steer_heal.data import own_traits
from steer_heal.evaluate import drafts
from steer_heal.records import Trait


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when it was done."""
    if args.action == "list":
        return _list(out)
    if not args.name:
        raise SettingsError(f"Name the trait: trait {args.action} NAME.")
    does = {"make": _make, "show": _show, "export": _export, "import": _import, "delete": _delete}
    said, shown = does[args.action](args)
    out.text(said)
    out.document({"command": "trait", "action": args.action, **shown})
    return 0


def _list(out: Out) -> int:
    ours = data.bundled_traits()
    rows = [
        {
            "name": name,
            "title": clean(trait.title),
            "target": "its own axis" if trait.on_own_axis else target(trait.target),
            "whose": "ours" if name in ours else "yours",
        }
        for name, trait in data.traits().items()
    ]
    columns = [
        Column("name", "name"),
        Column("whose", "whose"),
        Column("target", "moves"),
        Column("title", "title"),
    ]
    out.text(table(columns, rows), "", f"Yours are kept in {own_traits.folder()}.")
    for name in own_traits.files():
        if name not in data.traits():
            out.note(f"{name} is left out: `trait show {name}` says why.")
    out.document({"command": "trait", "action": "list", "folder": str(own_traits.folder()), "rows": rows})
    return 0


def target(signs: dict[str, int]) -> str:
    """The foundations that a trait should move, as `--target` takes them."""
    return ",".join(f"{name}={sign}" for name, sign in signs.items())


def _make(args: Namespace) -> tuple[str, dict[str, Any]]:
    file = own_traits.files().get(args.name)
    if file and (args.plus, args.minus, args.replies, args.target) == (None, None, None, ""):
        return _written(args, data.trait_entry(file), data.trait(args.name))
    if args.plus is None or args.minus is None:
        raise SettingsError(
            "A trait has two poles: give --plus and --minus, such as --plus blunt --minus tactful."
        )
    more: dict[str, Any] = {"target": data.aim(args.target)} if args.target else {}
    if args.replies:
        more |= _said(Path(args.replies))
    row = own_traits.of_poles(args.name, args.plus, args.minus, **more)
    return _kept(args, row, data.checked_trait(f"trait {args.name}", row))


def _kept(args: Namespace, row: dict[str, Any], trait: Trait) -> tuple[str, dict[str, Any]]:
    """The file of a new trait."""
    own_traits.check_new(trait.name)
    return _written(args, row, trait)


def _written(args: Namespace, row: dict[str, Any], trait: Trait) -> tuple[str, dict[str, Any]]:
    """Writes the trait's file, what it lacks drafted by the model."""
    said = ""
    if drafts.lacks(trait):
        row, said = drafts.completed(models.load(args.model), row, trait)
        trait = data.checked_trait(f"trait {trait.name}", row)
    file = own_traits.write(row)
    lines = [f"{clean(trait.title)}: {file}"]
    if said:
        lines += [said, *(f"reply {mark} {clean(text)}" for mark, text in trait.spoken())]
        lines += [f"measure + {clean(plus)}\nmeasure - {clean(minus)}" for plus, minus in trait.statements]
    return "\n".join(lines), {"file": str(file), "trait": asdict(trait)}


def _said(file: Path) -> dict[str, Any]:
    """The replies in the file; of a trait's file also the scenes that they answer, or those alone."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{file} cannot be read ({error}): give a JSON list of pairs of replies, or a trait's file."
        ) from error
    if not isinstance(found, dict):
        return {"replies": found}
    return {key: found[key] for key in ("replies", "scenes") if key in found} or {"replies": None}


def _show(args: Namespace) -> tuple[str, dict[str, Any]]:
    trait = data.trait(args.name)
    lines = [
        clean(trait.title),
        f"more: {clean(trait.positive)}",
        f"less: {clean(trait.negative)}",
        f"measured on its own axis: {clean(' against '.join(trait.target))}"
        if trait.on_own_axis
        else f"should move: {target(trait.target)}",
        f"paired replies: {len(trait.replies)}; pairs that it is measured by: {len(trait.statements)}",
    ]
    return "\n".join(lines), {"trait": asdict(trait)}


def _export(args: Namespace) -> tuple[str, dict[str, Any]]:
    data.trait(args.name)
    files = own_traits.files()
    if args.name not in files:
        raise SettingsError(f"{args.name} is a trait of ours, which everybody has: export one of your own.")
    out = Path(args.out or f"{args.name}.json")
    if out.exists():
        raise SettingsError(f"{out} is there: give another file.")
    try:
        out.write_bytes(files[args.name].read_bytes())
    except OSError as error:
        raise SettingsError(f"{out} cannot be written ({error.strerror}): choose another place.") from error
    return f"{args.name}: {out}", {"file": str(out)}


def _import(args: Namespace) -> tuple[str, dict[str, Any]]:
    row = data.trait_entry(Path(args.name))
    trait = data.checked_trait(Path(args.name).name, row)
    own_traits.check(trait.name, trait.positive, trait.negative)
    return _kept(args, row, trait)


def _delete(args: Namespace) -> tuple[str, dict[str, Any]]:
    own_traits.delete(args.name)
    return f"{args.name} is deleted.", {"name": args.name}
