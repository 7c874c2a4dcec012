"""`dose`: alpha against profile, coherence and text health; where it breaks; alpha x layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steer_heal import engine as engines
from steer_heal.cli.arguments import Namespace, sampling
from steer_heal.cli.tables import SNAKE, Column, Out, foundations, number, table, worth
from steer_heal.config import THRESHOLDS, DoseRequest, SampleSettings, SettingsError, build
from steer_heal.records import DoseRow, Sweep

ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
GRID_ALPHAS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
PANELS = ("coherence", "kl_p95", "repetition", "perplexity", "trait_shift")
UNITS = {
    "coherence": "answer mass",
    "kl_p95": "p95 KL, nats",
    "repetition": "repetition",
    "perplexity": "perplexity under base",
    "trait_shift": "trait shift, probability",
}


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when everything was measured."""
    default = GRID_ALPHAS if args.grid else ALPHAS
    n_vignettes = args.n_vignettes
    request = build(
        DoseRequest,
        trait=args.trait,
        band=args.band,
        method=args.method,
        frame=args.frame,
        refine=args.refine,
        prompts=tuple(args.prompt),
        alphas=args.alphas if args.alphas is not None else default,
        n_vignettes=n_vignettes,
        sample=build(
            SampleSettings, max_new_tokens=args.tokens, seed=args.seed, greedy=args.greedy, **sampling(args)
        ),
    )
    if args.figure and not Path(args.figure).absolute().parent.is_dir():
        raise SettingsError(f"There is no folder for {args.figure}: make it first.")
    engine = engines.Engine(args.model, cache_dir=args.cache)
    out.model(engine.info)
    try:
        calibration = None if args.grid else engine.calibration(args.trait, args.band, args.method)
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
    columns = [number("alpha", "alpha", ".2f", 6), *foundations(everything=args.all)]
    columns += [number("agreement", "agreement", ".2f"), number("coherence")]
    if args.grid:
        columns.insert(0, Column("layers", "layers", width=6))
    else:
        columns += [number("kl_p95", "kl_p95", ".2f"), number("perplexity", "perplexity", ".2f")]
        columns += [number("repetition", "repetition", ".2f")]
    columns += [number("trait_shift", "trait_shift", "+.3f"), Column("verdict", "verdict")]
    about = f"c* {c_star:.4g}" if c_star is not None else "each band at its own c*"
    out.text(f"{args.trait}, {about}", "", table(columns, rows))
    reading = found.reading
    if reading is not None:
        out.text(f"on base, our own vignettes: {reading.agreement.sentence(reading.frame)}")
    for mark, alpha in found.breaks.items():
        out.text(f"coherence falls below {mark:.2f} of base at alpha {alpha:.2f}")
    out.document(
        {
            "command": "dose",
            "model": args.model,
            "trait": args.trait,
            "band": args.band,
            "c_star": c_star,
            "sample": sample,
            "rows": rows,
            "reading": reading and worth(reading.frame, reading.agreement, reading.order_tv),
            "breaks": {f"{mark:.2f}": alpha for mark, alpha in found.breaks.items()},
            "thresholds": THRESHOLDS.model_dump(),
        }
    )


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


def _row(row: DoseRow, layers: dict[tuple[float, float], str]) -> dict[str, Any]:
    found, profile = asdict(replace(row, profile=None)), row.profile
    del found["profile"]
    if profile is not None:
        found |= {SNAKE[name]: value for name, value in profile.p.items()}
        found |= worth(profile.frame, profile.agreement, profile.order_tv)
    return found | {"layers": layers[row.band]}


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
    """Trait shift and coherence, alpha across and layers up, side by side."""
    alphas = sorted({row.alpha for row in rows})
    bands = list(dict.fromkeys(row.band for row in rows))
    cells = {(row.band, row.alpha): row for row in rows}
    figure = make_subplots(rows=1, cols=2, subplot_titles=("trait shift", "coherence"), shared_yaxes=True)
    for place, (key, colours) in enumerate((("trait_shift", "RdBu"), ("coherence", "Cividis")), 1):
        z = [[getattr(cells[band, alpha], key) for alpha in alphas] for band in bands]
        names = [layers[band] for band in bands]
        heat = go.Heatmap(
            x=alphas, y=names, z=z, colorscale=colours, colorbar={"x": 0.46 if place == 1 else 1.0}
        )
        figure.add_trace(heat, row=1, col=place)
    figure.update_xaxes(title_text="alpha, units of c*")
    return figure.update_layout(height=700, title="Alpha x layers").update_yaxes(type="category")
