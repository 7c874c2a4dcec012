"""Healing smollm2 against its controls: `python -m benchmarks.heal run [--budget HOURS]`, then `table`.

Every run is a run as the page starts it, under build/heal/runs. `run` plays the cells in order of worth, each
trait and seed of one before the next, ends between two rounds when another would pass the budget, and goes on
where it was when called again. What was measured goes to build/heal/rows.jsonl, a line a run; `table` prints
the newest line of each: base, steering at alpha 1 in the first round, and the healed model of every round.
What a cell and the default have in common, base and steering's curve, is measured in the default's run. A
trait of your own is one more: `steer_heal trait make formal --plus formal --minus casual`, `--traits formal`.
"""

import argparse
import json
import re
import shutil
import threading
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean, stdev
from typing import Any
from unittest import mock

from steer_heal import data
from steer_heal.cli.tables import Column, number, table
from steer_heal.config import DEFAULT_TRAIT, PRESETS, SMOLLM2, HealSettings, changed, heal_settings
from steer_heal.dose.controls import random_directions
from steer_heal.evaluate import text_health
from steer_heal.heal import algorithm
from steer_heal.heal.measure import Measures
from steer_heal.models import LanguageModel, system
from steer_heal.records import Completion, Event
from steer_heal.runs import events, worker
from steer_heal.runs.jobs import RunFolder

HOME = Path(__file__).resolve().parents[1] / "build" / "heal"
EVALUATE = {"n_answers": 100, "n_vignettes": None, "controls": 8}
"""To each held-out prompt one free answer, all vignettes, eight random directions: what the bars are read
from."""
ON_OWN_AXIS = 70
"""Vignettes of a trait that is measured by what its poles would say, which takes longer and has no labels."""

NEAR = {"tau": 0.05, "lam": 1.0}
PLAIN = {"divergence": "nll"}
LIKELIER = {"likelihood": 0.3}
EVERYTHING = {
    "max_perplexity_ratio": 1e9,
    "min_relevance_ratio": -1e9,
    "max_repetition": 1.0,
    "min_variety": 0.0,
}
PERPLEXITY_ALONE = {"min_relevance_ratio": -1e9, "max_repetition": 1.0, "min_variety": 0.0}
CELLS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain NLL": {"train": PLAIN},
    "unsteered text": {"data": {"alphas": (0.0,)}, "train": PLAIN},
    "persona's text": {"data": {"alphas": (0.0,)}, "train": PLAIN},
    "random direction": {},
    "likelihood too": {"train": LIKELIER},
    "likelihood too, no filter": {"filter": EVERYTHING, "train": LIKELIER},
    "quick": {"data": PRESETS["quick"]["data"]},
    "full dose again": {"data": {"later": 1.0}},
    "no plain answers": {"data": {"n_plain": 0}},
    "kl_rev, base": {"train": {"divergence": "kl_rev", "reference": "base", **NEAR}},
    "kl_rev, prev": {"train": {"divergence": "kl_rev", "reference": "prev", **NEAR}},
    "known": {
        "filter": PERPLEXITY_ALONE,
        "train": {"divergence": "kl_rev", "reference": "prev", "lam": 0.3},
    },
    "kl_fwd, base": {"train": {"divergence": "kl_fwd", "reference": "base", **NEAR}},
    "kl_fwd, prev": {"train": {"divergence": "kl_fwd", "reference": "prev", **NEAR}},
    "weight decay": {"train": {"weight_decay": 0.1}},
}
"""Name -> what differs from the standard preset, in order of worth. "known": the published settings of
steer-heal-love, as near as they can be had. One that is the same as the default is not played again."""

WRITE, VECTOR = Measures.write, algorithm._Loop._vector


def under_the_persona(measures: Measures, prompts: Sequence[str], *how: Any, **more: Any) -> list[Completion]:
    """A round's answers by base, told the persona; what it writes without a dose is as ever."""
    encode = LanguageModel.encode_chat

    def told(lm: LanguageModel, turns: Sequence[Any]) -> list[int]:
        return encode(lm, [system(measures._persona), *turns])

    persona = mock.patch.object(LanguageModel, "encode_chat", told) if more.get("dose") else nullcontext()
    with persona:
        return WRITE(measures, prompts, *how, **more)


def random_vector(loop: Any, *how: Any) -> Any:
    """The first of the random directions that the trait's movement is held against, in the vector's place."""
    found = VECTOR(loop, *how)
    return replace(found, directions_LD=random_directions(1, *found.directions_LD.shape)[0])


METHODS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "persona's text": (Measures, "write", under_the_persona),
    "random direction": (algorithm._Loop, "_vector", random_vector),
}
"""Of the cells that are no part of the product, and that no setting says: what takes which method's place."""


READINGS = ("agreement", "relevance", "diversity")
HALVES = 500
Point = Mapping[str, Any]
Key = tuple[str, str, int]
"""A run: cell, trait, seed."""


def settings_of(key: Key, rounds: int) -> HealSettings:
    cell, trait, seed = key
    changes = {"model": SMOLLM2, "trait": trait, "rounds": rounds, "seed": seed, "evaluate": dict(EVALUATE)}
    if data.trait(trait).on_own_axis:
        changes["evaluate"]["n_vignettes"] = ON_OWN_AXIS
    return heal_settings("standard", **changes, **CELLS[cell])


def name_of(key: Key) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, key)).lower())


def common(key: Key, rounds: int) -> bytes:
    """The default's log up to steering's curve, which no cell changes; nothing where there is none by today's
    settings."""
    default = "default", *key[1:]
    folder = RunFolder(HOME / "runs" / name_of(default))
    if not (folder.path / "config.json").is_file():
        return b""
    if changed(folder.settings(), rounds=rounds) != settings_of(default, rounds):
        return b""
    lines = folder.log.read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if b'"kind":"curve"' in line]
    return b"".join(lines[: ends[0]]) if ends else b""


def play(key: Key, settings: HealSettings, end: float) -> dict[str, Any]:
    """Goes on with the run until it ends, or until a round more would pass `end`; gives its row."""
    name, stopped = name_of(key), threading.Event()
    folder = RunFolder(HOME / "runs" / name)
    if (folder.path / "config.json").is_file() and folder.settings() != settings:
        shutil.rmtree(folder.path)
    if not folder.path.is_dir():
        folder.path.mkdir(parents=True)
        folder.log.write_bytes(common(key, settings.rounds))
    folder.write("config.json", settings.model_dump_json(indent=2))

    began = time.time()

    def hear(event: Event) -> None:
        nonlocal began
        # Base and steering's curve are measured once, so the first round counts from after them.
        if event.kind == "curve" or (event.kind == "stage" and event.data["stage"] == "extract"):
            began = event.time
        if event.kind != "round":
            return
        said, seconds = event.data["headline"], event.time - began
        print(f"{name}, round {event.round}: {said['word']}, {said['why']} ({seconds:.0f} s)", flush=True)
        if event.round != settings.rounds and time.monotonic() + seconds > end:
            stopped.set()

    folder.release()
    replaced = METHODS.get(key[0])
    with mock.patch.object(*replaced) if replaced else nullcontext():
        status = worker.work(folder, stopped, hear)
    log = events.read(folder.log).events
    shown = {"cell": key[0], "trait": key[1], "seed": key[2], "status": status}
    return {**shown, "settings": settings.model_dump(mode="json"), "stages": list(stages(log))}


def stages(log: Sequence[Event]) -> Iterator[dict[str, Any]]:
    """What was measured of base, of steering at some doses, and of each round's healed model, with how far
    above steering's curve that is."""
    held_out, curve = {}, []
    labels = [row.foundation for row in data.material(demo=False).vignettes(condition=data.CONDITION)]
    for event in log:
        if event.kind == "held_out":
            held_out[event.data["stage"], event.round, event.data["alpha"]] = event.data
        elif event.kind == "curve" and not curve:  # a log that was gone on with has it once more
            curve = event.data["points"]
            yield from curve
        elif event.kind == "round":
            as_far, healed = event.data.get("as_far"), event.data["path"][-1]
            yield healed | {
                "above": above(healed, curve, held_out, labels),
                "retention": event.data["retention"],
                "beyond_random": None if as_far is None else as_far == 0,
                "headline": event.data["headline"]["word"],
            }


def above(
    healed: Point, curve: Sequence[Point], held_out: Mapping[Any, Any], labels: Sequence[str]
) -> dict[str, tuple[float, float, float]]:
    """How far a round lies above steering's curve at the same movement, with the 95% interval.

    The curve is linear between its doses. The interval is 1.96 standard deviations of the difference over
    random halves of the vignettes (agreement) or of the held-out prompts (relevance, distinct bigrams), the
    same half for healed and steered: a half has the variance of the whole about it, and unlike a bootstrap no
    answer twice, which would count as a repetition.
    """
    doses = sorted(curve, key=lambda point: point["movement"])
    at = max(1, min(bisect([dose["movement"] for dose in doses], healed["movement"]), len(doses) - 1))
    less, more = doses[at - 1 : at + 1]
    share = (healed["movement"] - less["movement"]) / (more["movement"] - less["movement"])
    three = [held_out[point["stage"], point["round"], point["alpha"]] for point in (healed, less, more)]

    def difference(reading: Callable[[Any, Sequence[int]], float], some: Sequence[int]) -> float:
        of_healed, of_less, of_more = (reading(one, some) for one in three)
        return of_healed - (1 - share) * of_less - share * of_more

    def agreement(one: Any, some: Sequence[int]) -> float:
        return fmean(one["likeliest"][number] == labels[number] for number in some)

    def relevance(one: Any, some: Sequence[int]) -> float:
        return text_health.middle(one["relevance"][number] for number in some) or 0.0

    def diversity(one: Any, some: Sequence[int]) -> float:
        return text_health.distinct_bigrams([one["texts"][number] for number in some])

    found, random = {}, Random(0)
    of = ((agreement, "likeliest"), (relevance, "texts"), (diversity, "texts"))
    for reading, key in of if healed["agreement"] is not None else of[1:]:
        every = range(len(three[0][key]))
        halves = [difference(reading, random.sample(every, len(every) // 2)) for _ in range(HALVES)]
        value, reach = difference(reading, every), 1.96 * stdev(halves)
        found[reading.__name__] = value, value - reach, value + reach
    return found


def rows() -> dict[Key, dict[str, Any]]:
    """The newest row of each run."""
    path = HOME / "rows.jsonl"
    read = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
    return {(row["cell"], row["trait"], row["seed"]): row for row in read}


def run(keys: Sequence[Key], rounds: int, hours: float) -> None:
    """Plays the runs that have not ended with their settings yet, in their order, until the time is up."""
    end = time.monotonic() + 3600 * hours
    for key in keys:
        settings, known = settings_of(key, rounds), rows().get(key)
        same = known and known["settings"] == settings.model_dump(mode="json")
        if known and same and known["status"] in ("finished", "failed"):
            continue
        like_default = settings == settings_of(("default", *key[1:]), rounds)
        if like_default and key[0] not in ("default", *METHODS):
            continue
        row = play(key, settings, end)
        with (HOME / "rows.jsonl").open("a") as file:
            file.write(json.dumps(events.plain(row)) + "\n")
        if row["status"] == "cancelled" or time.monotonic() > end:
            print("out of time: call it again to go on")
            return


def print_table() -> None:
    columns = [
        Column("cell", "cell", width=16),
        Column("trait", "trait", width=22),
        number("seed", "seed", "d", 4),
        number("round", "round", "d", 5),
        Column("stage", "stage", width=7),
        number("alpha", "alpha", ".2f", 5),
        number("retention", "retention", ".2f"),
        number("movement", "movement", "+.3f"),
        number("agreement", "agreement", ".2f"),
        number("relevance", "relevance", ".2f"),
        number("diversity", "diversity", ".2f"),
        number("perplexity_ratio", "perplexity", ".2f"),
        number("looping", "looping", ".0%"),
        number("facts_kept", "facts", ".0%"),
        number("neutral_kl", "neutral KL", ".3f"),
        *(Column(f"{name} above", f"{name} above the curve", width=26) for name in READINGS),
        Column("headline", "headline", width=20),
    ]
    newest = rows()
    order = sorted(newest, key=lambda key: (list(CELLS).index(key[0]), *key[1:]))
    shown = [{**newest[key], **stage, **intervals(stage)} for key in order for stage in newest[key]["stages"]]
    print(table(columns, shown))


def intervals(stage: Point) -> dict[str, str]:
    above = stage.get("above", {})
    return {
        f"{name} above": f"{by:+.3f} ({low:+.2f} to {high:+.2f})" for name, (by, low, high) in above.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--traits", nargs="+", choices=sorted(data.traits()), default=[DEFAULT_TRAIT])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--budget", type=float, default=1.0, metavar="HOURS")
    args = parser.parse_args()
    if args.what == "table":
        print_table()
    else:
        run([*product(args.cells, args.traits, args.seeds)], args.rounds, args.budget)


if __name__ == "__main__":
    main()
