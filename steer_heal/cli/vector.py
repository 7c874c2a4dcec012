"""`vector`: extract a trait's steering vector into a file."""

from __future__ import annotations

from pathlib import Path

from steer_heal import models, vector
from steer_heal.cli.options import Commands, Namespace, add_model, add_trait, command
from steer_heal.cli.tables import Out
from steer_heal.config import SettingsError
from steer_heal.engine.vectors import Vectors


def add(commands: Commands) -> None:
    made = command(commands, "vector", "Extract a trait's vector (every layer) and its c* at the band.", run)
    add_model(made)
    add_trait(made)
    made.add_argument("--out", required=True, metavar="FILE", help="a safetensors file to write")


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when the file was written."""
    target = Path(args.out)
    if target.is_dir():
        raise SettingsError(f"{target} is a folder: give a file to write.")
    steer = Vectors(models.load(args.model), Path(args.cache)).steer(args.trait, args.band)
    try:
        path = vector.save(steer.vector, target)
    except OSError as error:
        raise SettingsError(
            f"Cannot write {target} ({error.strerror or error}): choose another file."
        ) from error
    known, layers = steer.calibration, list(steer.layers)
    norm = float(steer.vector.norms_L[layers].mean())
    out.text(
        f"{args.trait} of {args.model}: {path}",
        f"layers {layers[0]}-{layers[-1]}, mean length {norm:.4g}",
        f"c* {known.c_star:.4g} (p95 KL {known.kl_p95:.3f} nats)",
    )
    if known.message:
        out.note(known.message)
    out.document(
        {
            "command": "vector",
            "file": str(path),
            "model": args.model,
            "trait": args.trait,
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
