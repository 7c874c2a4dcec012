"""`effect`: what a vector does at its c*, beside random directions and the persona told as text."""

from dataclasses import asdict
from typing import Any

from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, clean, number, table
from steer_heal.config import DoseRequest, SettingsError, build
from steer_heal.engine import Engine
from steer_heal.records import Effect


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when everything was measured."""
    given = ("trait", "mix", "band", "method", "frame", "controls")
    request = build(DoseRequest, **{name: getattr(args, name) for name in given})
    engine = Engine(args.model, cache_dir=args.cache)
    out.model(engine.info)
    found = measured(engine, request, out)
    _show(out, found, args.mix)
    document = {"command": "effect", "model": args.model, "mix": args.mix, **asdict(found)}
    out.document(document | {"movement": found.movement, "as_far": found.as_far})
    return 0


def measured(engine: Engine, request: DoseRequest, out: Out) -> Effect:
    """What the vector does, measured or known; the engine is closed then. Raises: `SettingsError`."""
    found: Effect | str = ""
    try:
        for found in engine.effect(request, session="cli"):
            if isinstance(found, str):
                out.progress(f"measuring {found}")
    finally:
        engine.close()
    if isinstance(found, str):
        raise SettingsError("Nothing was measured: start it again.")
    return found


def _show(out: Out, found: Effect, mix: str) -> None:
    columns = [Column("foundation", "foundation"), number("base", "base"), number("steered", "steered")]
    columns += [
        number("low", "moved from", "+.3f"),
        number("high", "to", "+.3f"),
        number("persona", "persona"),
    ]
    columns += [number("least", "random, least", ".3f"), number("most", "most", ".3f")]
    out.text(
        f"{mix or found.trait} at c* {found.c_star:.4g}, layers {found.layers[0]}-{found.layers[-1]}, over "
        f"{found.n_vignettes} vignettes",
        "",
        table(columns, [_row(found, name) for name in found.steered]),
        "",
        found.sentence(),
        f"base: {found.base_agreement.sentence(found.frame)}; steered: {found.agreement.sentence()}",
    )
    if found.promoted:
        out.text(
            f"promoted: {clean(', '.join(found.promoted))}", f"demoted: {clean(', '.join(found.demoted))}"
        )
    for answer in found.answers:
        out.text(
            "", clean(answer.prompt), f"  base: {clean(answer.base)}", f"  steered: {clean(answer.steered)}"
        )


def _row(found: Effect, name: str) -> dict[str, Any]:
    held = found.controls
    low, high = found.intervals.get(name, (None, None))
    random = [p[name] for p in held.random]
    return {
        "foundation": name, "base": held.base[name], "steered": found.steered[name],
        "low": low, "high": high, "persona": held.persona and held.persona[name],
        "least": min(random, default=None), "most": max(random, default=None),
    }  # fmt: skip
