"""`eval`: foundations, or a trait's poles, of a model, of its adapters and of a dose, base beside them."""

from operator import attrgetter
from pathlib import Path
from typing import Any

from steer_heal import data, models
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Column, Out, number, p_of, table, worth
from steer_heal.config import AUTO_FRAME, SettingsError
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate import tinymfv, vignette_sets
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.frames import Frames
from steer_heal.heal.adapters import CONFIG, AdapterStack, saved_rounds
from steer_heal.records import Profile, Vignette


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when everything was measured."""
    if args.theirs and args.vignettes not in tinymfv.SETS:
        raise SettingsError(f"--theirs needs --vignettes {' or '.join(tinymfv.SETS)}.")
    lm = models.load(args.model)
    vignettes = _vignettes(args, lm)
    out.model(lm.info)
    frames, steer = Frames(lm, Path(args.cache)), None
    own = data.frame_of(data.trait(args.trait)) if args.frame == AUTO_FRAME else args.frame
    asked = frames.of(own).frame if own == AUTO_FRAME else own
    frame = tinymfv.frame(args.think) if asked == "tinymfv" else data.frame(asked)
    calibrated = frames.calibration(asked, vignettes)
    if args.alpha is not None:
        steer = Vectors(lm, Path(args.cache)).steer(args.trait, args.band, args.method)

    def measure(name: str, alpha: float | None) -> Profile:
        dosed = None if alpha is None or steer is None else steer.coefficients_RL(alpha)
        return evaluate(
            lm,
            vignettes,
            frame,
            vector=None if dosed is None or steer is None else steer.vector,
            coefficients_RL=dosed,
            calibrated=calibrated,
            progress=lambda done, total: out.progress(f"{name}: {done} of {total}"),
        )[0]

    stack = AdapterStack(lm)
    try:
        if args.adapter:
            _put_on(stack, Path(args.adapter))  # what cannot be put on is refused before anything is measured
            for name in stack.strange():
                out.note(f"By its own account the adapter was trained on {name}, not on {args.model}.")
            stack.unload()
        found = {"base": (0.0, measure("base", None))}
        calibrated = found["base"][1].calibration
        if args.theirs:
            theirs = tinymfv.evaluate(  # unpadded
                lm, args.vignettes, args.condition, limit=args.limit, think_tokens=args.think, batch_size=1
            )
            found["tinymfv"] = (0.0, theirs)
        if args.adapter:
            _put_on(stack, Path(args.adapter))
            found["healed"] = (0.0, measure("healed", None))
        if args.alpha is not None:
            name = "healed, steered" if args.adapter else "steered"
            found[name] = (args.alpha, measure(name, args.alpha))
    finally:
        stack.unload()
    _show(args, out, found)
    return 0


def _vignettes(args: Namespace, lm: models.LanguageModel) -> list[Vignette]:
    """Balanced, but tinymfv's own evaluation takes the first ones."""
    limit = None if args.theirs else args.limit
    rows = vignette_sets.vignettes(args.vignettes, lm.material, condition=args.condition, limit=limit)
    return rows[: args.limit] if args.theirs else rows


def _put_on(stack: AdapterStack, folder: Path) -> None:
    rounds = saved_rounds(folder)
    if (folder / CONFIG).is_file():
        stack.load_path(folder)
    elif rounds:
        for round_ in rounds:
            stack.load(round_, folder)
    else:
        raise SettingsError(
            f"{folder} is no adapter and holds none: give a peft folder or a run's adapters folder."
        )


def _show(args: Namespace, out: Out, found: dict[str, tuple[float, Profile]]) -> None:
    base, (_, last) = found["base"][1], list(found.values())[-1]
    rows: list[dict[str, Any]] = []
    for name in sorted(base.p, key=lambda name: -abs(last.p[name] - base.p[name])):
        values = {stage: profile.p[name] for stage, (_, profile) in found.items()}
        rows.append({"foundation": name, **values, "change": last.p[name] - base.p[name]})
    for name, value in (("agreement", attrgetter("agreement.value")), ("coherence", attrgetter("coherence"))):
        stages = {stage: value(profile) for stage, (_, profile) in found.items()}
        before, after = value(base), value(last)
        change = None if before is None or after is None else after - before
        rows.append({"foundation": name, **stages, "change": change})
    columns = [Column("foundation", "foundation"), *(number(stage, stage) for stage in found)]
    if len(found) > 1:
        columns.append(number("change", "change", "+.3f"))
    out.text(f"{args.model}, {base.n_vignettes} vignettes", "", table(columns, rows))
    out.text(f"base: {base.agreement.sentence(base.frame)}")
    out.document(
        {
            "command": "eval",
            "model": args.model,
            "trait": args.trait,
            "adapter": args.adapter,
            "rows": [
                {
                    "stage": stage,
                    "alpha": alpha,
                    "coherence": profile.coherence,
                    "n_vignettes": profile.n_vignettes,
                }
                | p_of(profile.p)
                | worth(profile.frame, profile.agreement, profile.order_tv)
                for stage, (alpha, profile) in found.items()
            ],
            "by_change": [row["foundation"] for row in rows[:-2]],
        }
    )
