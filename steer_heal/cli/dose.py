"""`dose`: alpha against profile, coherence and text health; where it breaks; alpha x layer."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer_heal import engine as engines
from steer_heal.cli.arguments import Namespace, drawing
from steer_heal.cli.tables import Column, Out, number, p_of, probabilities, table, worth
from steer_heal.config import THRESHOLDS, DoseRequest, SettingsError, build
from steer_heal.data import trait
from steer_heal.records import DoseRow, Sweep, TextWord

WORDS = get_args(TextWord)
GRID_ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
UNITS = {
    "perplexity": "perplexity under base",
    "relevance": "relevance, nats",
    "repetition": "repetition",
    "kl_p95": "p95 KL, nats",
    "trait_shift": "trait shift, probability",
    "coherence": "answer mass",
}
PANELS = tuple(UNITS)


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when everything was measured."""
    default = GRID_ALPHAS if args.grid else DoseRequest().alphas
    given = ("trait", "band", "method", "mix", "where", "frame", "refine", "n_vignettes", "controls")
    request = build(
        DoseRequest,
        **{name: getattr(args, name) for name in given},
        prompts=tuple(args.prompt),
        alphas=args.alphas if args.alphas is not None else default,
        sample=drawing(args),
    )
    if args.figure and not Path(args.figure).absolute().parent.is_dir():
        raise SettingsError(f"There is no folder for {args.figure}: make it first.")
    engine = engines.Engine(args.model, cache_dir=args.cache)
    out.model(engine.info)
    try:
        one = not args.grid and not request.mix
        calibration = engine.calibration(args.trait, args.band, args.method) if one else None
        if calibration is not None and calibration.message:
            out.note(calibration.message)
        found = Sweep(0.0, [])
        sweep = engine.grid(request, session="cli") if args.grid else engine.dose(request, session="cli")
        for found in sweep:
            out.progress(f"{found.share:.0%} measured")
        layers = {row.band: _span(engine.layers(row.band)) for row in found.rows}
        sample = asdict(engine.info.sampling) | request.sample.model_dump(exclude_none=True)
    finally:
        engine.close()
    c_star = None if calibration is None else calibration.c_star
    _show(args, out, c_star, [_row(row, layers) for row in found.rows], found, sample)
    if args.figure:
        figure = grid_figure(found.rows, layers) if args.grid else sweep_figure(found.rows)
        Path(args.figure).write_text(figure.to_html(include_plotlyjs=True, full_html=True), encoding="utf-8")
        out.note(f"Figure in {args.figure}")
    return 0


def _show(
    args: Namespace,
    out: Out,
    c_star: float | None,
    rows: list[dict[str, Any]],
    found: Sweep,
    sample: dict[str, Any],
) -> None:
    columns = [number("alpha", "alpha", ".2f", 6), *probabilities(trait(args.trait), everything=args.all)]
    columns += [number("agreement", "agreement", ".2f"), number("coherence")]
    if args.grid:
        columns.insert(0, Column("layers", "layers", width=6))
    else:
        columns += [number("kl_p95", "kl_p95", ".2f")]
    columns += [number(key, key, ".2f") for key in ("perplexity", "relevance", "repetition")]
    columns += [number("trait_shift", "trait_shift", "+.3f")]
    columns += [Column("text_verdict", "text", width=7), Column("answers_verdict", "answers", width=8)]
    about = f"c* {c_star:.4g}" if c_star is not None else "each band at its own c*" if args.grid else "a mix"
    out.text(f"{args.mix or args.trait}, {about}", "", table(columns, rows))
    reading = found.reading
    if reading is not None:
        out.text(f"on base, our own vignettes: {reading.agreement.sentence(reading.frame)}")
    held, moved, target = found.controls, found.movement, trait(args.trait).target
    if said := found.against(target):
        out.text(said)
    for word, alpha in found.breaks.items():
        of = "text is" if word in WORDS else "answers are"
        out.text(f"{of} {word} from alpha {alpha:.2f}")
    out.document(
        {
            "command": "dose",
            "model": args.model,
            "trait": args.trait,
            "mix": args.mix,
            "where": args.where,
            "one_nat": found.nat,
            "band": args.band,
            "c_star": c_star,
            "sample": sample,
            "rows": rows,
            "controls": held
            and {
                "random": held.shifts(target),
                "persona": held.persona_shift(target),
                "as_far": None if moved is None else held.as_far(target, moved),
                "c_stars": held.c_stars,
            },
            "reading": reading and worth(reading.frame, reading.agreement, reading.order_tv),
            "breaks": found.breaks,
            "thresholds": THRESHOLDS.model_dump(),
        }
    )


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _row(row: DoseRow, layers: dict[tuple[float, float], str]) -> dict[str, Any]:
    found, profile = asdict(replace(row, profile=None)), row.profile
    del found["profile"]
    if profile is not None:
        found |= p_of(profile.p)
        found |= worth(profile.frame, profile.agreement, profile.order_tv)
    return found | {"layers": layers[row.band], "text_verdict": row.verdict}


def sweep_figure(rows: list[DoseRow]) -> go.Figure:
    """Each quantity against alpha, one above the other."""
    figure = make_subplots(rows=len(PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.03)
    for place, key in enumerate(PANELS, 1):
        y = [getattr(row, key) for row in rows]
        hover = [f"alpha {row.alpha:g}: {row.verdict}" for row in rows]
        line = go.Scatter(
            x=[row.alpha for row in rows], y=y, mode="lines+markers", name=UNITS[key], text=hover
        )
        figure.add_trace(line, row=place, col=1)
        figure.update_yaxes(title_text=UNITS[key], row=place, col=1)
    figure.update_yaxes(type="log", row=PANELS.index("perplexity") + 1, col=1)
    figure.update_xaxes(title_text="alpha, units of c*", row=len(PANELS), col=1)
    return figure.update_layout(height=1000, showlegend=False, title="Dose against effect")


def grid_figure(rows: list[DoseRow], layers: dict[tuple[float, float], str]) -> go.Figure:
    """Trait shift, text health and agreement, alpha across and layers up, side by side."""
    alphas = sorted({row.alpha for row in rows})
    bands = list(dict.fromkeys(row.band for row in rows))
    cells = {(row.band, row.alpha): row for row in rows}
    titles = ("trait shift", f"text: {', '.join(WORDS)}", "agreement")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, shared_yaxes=True)
    values: Sequence[tuple[Callable[[DoseRow], float | None], str]] = (
        (lambda row: row.trait_shift, "RdBu"),
        (lambda row: WORDS.index(row.verdict) if row.verdict else None, "YlOrRd"),
        (lambda row: row.profile.agreement.value if row.profile else None, "Cividis"),
    )
    for place, (value, colours) in enumerate(values, 1):
        z = [[value(cells[band, alpha]) for alpha in alphas] for band in bands]
        names = [layers[band] for band in bands]
        bar = {"x": place / 3, "len": 0.5}
        heat = go.Heatmap(x=alphas, y=names, z=z, colorscale=colours, colorbar=bar)
        figure.add_trace(heat, row=1, col=place)
    figure.update_xaxes(title_text="alpha, units of c*")
    return figure.update_layout(height=700, title="Alpha x layers").update_yaxes(type="category")
