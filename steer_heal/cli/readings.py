"""`readings`: how selectively a run moved the evidence and how often answers flipped, from stored scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from steer_heal import data
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, number, table
from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.evaluate.readings import gated_selectivity, signed_flips
from steer_heal.records import Agreement, Event, VignetteScore
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses

Key = tuple[int, str]


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when the run has a measured stage to compare with base."""
    folder = LocalProcesses(args.runs).folder(args.run_id)
    trait = data.trait(folder.settings().trait)
    if trait.on_own_axis:
        raise SettingsError(
            f"{trait.name} is measured on its own two poles, and readings compare foundations: see `results`."
        )
    target = trait.target
    log = events.read(folder.log).events
    found, worth = stages(log), base_worth(log)
    base = found.pop((0, "base"), None)
    if base is None or not found:
        raise SettingsError(f"{args.run_id} has no steered or healed stage to compare with base yet: wait.")
    mass = sum(row.mass for row in base) / len(base)
    rows: list[dict[str, Any]] = []
    for (round_, stage), scores in sorted(found.items()):
        select = gated_selectivity(scores, base, target, base_mass=mass)
        flips = signed_flips(scores, base, target)
        rows.append({"round": round_, "stage": stage, "selectivity": asdict(select), "flips": asdict(flips)})
    columns = [
        number("round", "round", "d"), Column("stage", "stage"), Column("selectivity", "selectivity, nats"),
        Column("flips", "flips"), number("n", "vignettes", "d"), number("n_invalid", "not answered", "d"),
    ]  # fmt: skip
    shown = [
        {
            **row,
            **{name: in_words(row[name]) for name in ("selectivity", "flips")},
            "n": row["flips"]["n"],
            "n_invalid": row["flips"]["n_invalid"],
        }
        for row in rows
    ]
    out.text(f"{args.run_id}: {signs(target)}, against base", "", table(columns, shown))
    if said := worth.sentence():
        out.text(f"base: {said}")
    document = {"command": "readings", "run_id": args.run_id, "target": target, "rows": rows}
    out.document(document | {"base_agreement": asdict(worth)})
    return 0


def stages(log: Sequence[Event]) -> dict[Key, list[VignetteScore]]:
    """The stored scores by round and stage; what was measured again counts."""
    return {
        (event.round or 0, str(event.data["stage"])): [score(row) for row in event.data["per_vignette"]]
        for event in log
        if event.kind == "profile" and event.data.get("per_vignette")
    }


def base_worth(log: Sequence[Event]) -> Agreement:
    """What the base's answers agree with; nothing in logs of before it was measured."""
    known = [event.data for event in log if event.kind == "profile" and event.data["stage"] == "base"]
    return Agreement(**(known[-1].get("agreement") or {})) if known else Agreement()


def score(row: Mapping[str, Any]) -> VignetteScore:
    """A stored vignette's score; numbers that were not finite stand there as none."""
    values = {
        name: {key: _number(row[name].get(key)) for key in FOUNDATIONS}
        if row.get(name)
        else dict.fromkeys(FOUNDATIONS, 0.0)
        for name in ("score", "p")
    }
    mass, nll, tv = (_number(row.get(key)) for key in ("mass", "prefill_nll", "order_tv"))
    return VignetteScore(str(row["id"]), str(row["foundation"]), values["score"], values["p"], mass, nll, tv)


def in_words(reading: Mapping[str, Any]) -> str:
    return f"{reading['value']:+.3f} [{reading['low']:+.3f}, {reading['high']:+.3f}]"


def signs(target: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {'up' if sign > 0 else 'down'}" for name, sign in target.items())


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
