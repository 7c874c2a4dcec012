"""`vector`: extract a trait's steering vector, or take one from a file, and write it in any format."""

from __future__ import annotations

from pathlib import Path

from steer_heal import data, models
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.tables import Out, clean
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.engine.vectors import Vectors
from steer_heal.models import band_layers
from steer_heal.vectors import formats


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when the file was written."""
    lm = models.load(args.model)
    out.model(lm.info)
    steer = _steer(args, lm)
    layers, known = list(steer.layers), steer.calibration
    wanted = layers if args.only_band else None
    path = formats.write(steer.vector, args.out, format=args.format, layers=wanted, coefficient=known.c_star)
    norm = float(steer.vector.norms_L[layers].mean())
    out.text(
        f"{clean(steer.vector.meta.get('trait') or args.trait)} of {args.model}: {path}",
        f"layers {layers[0]}-{layers[-1]}, mean length {norm:.4g}",
        f"c* {known.c_star:.4g} (p95 KL {known.kl_p95:.3f} nats)",
    )
    if known.message:
        out.note(known.message)
    out.document(
        {
            "command": "vector",
            "file": str(path),
            "from": args.source,
            "model": args.model,
            "trait": args.trait,
            "method": steer.vector.meta.get("method"),
            "band": args.band,
            "layers": layers,
            "norm": norm,
            "c_star": known.c_star,
            "kl_p95": known.kl_p95,
            "reached": known.reached,
            "residual_norm": known.residual_norm,
        }
    )
    return 0


def _steer(args: Namespace, lm: models.LanguageModel) -> CalibratedVector:
    """The vector asked for, with its c* at the band on this model."""
    vectors = Vectors(lm, Path(args.cache))
    if args.source is None:
        return vectors.steer(args.trait, args.band, args.method)
    found = formats.read(args.source, n_layers=lm.n_layers)
    formats.check(found, lm.n_layers, lm.width, lm.name)
    return vectors.calibrated(data.trait(args.trait), found, band_layers(lm.n_layers, args.band))
