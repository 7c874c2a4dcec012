"""`vector`: extract a trait's steering vector, or take one from a file, and write it in any format."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from steer_heal import data, models
from steer_heal.cli import hub
from steer_heal.cli.arguments import Namespace
from steer_heal.cli.effect import measured
from steer_heal.cli.tables import Out, clean
from steer_heal.config import DoseRequest, SettingsError, build
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.engine import Engine
from steer_heal.engine.vectors import Vectors
from steer_heal.heal import vector_card
from steer_heal.heal.cards import NAME
from steer_heal.models import band_layers
from steer_heal.vectors import formats


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when the file was written."""
    if args.push:
        hub.check(args.push)
    if args.effect and args.source is not None:
        raise SettingsError("--effect measures a trait's own vector: leave --from out.")
    lm = models.load(args.model)
    out.model(lm.info)
    steer = _steer(args, lm)
    layers, known = list(steer.layers), steer.calibration
    wanted = layers if args.only_band else None
    effect = None
    if args.effect:
        request = build(DoseRequest, trait=args.trait, band=args.band, method=args.method)
        effect = measured(Engine(lm=lm, cache_dir=args.cache), request, out)
    made = vector_card.travelling(steer, lm.name, effect)
    path = formats.write(made, args.out, format=args.format, layers=wanted, coefficient=known.c_star)
    text = vector_card.card(made, path.name, data.traits().get(made.meta.get("trait", "")))
    beside = vector_card.write_beside(path, text)
    address = _pushed(path, text, args.push, public=args.public) if args.push else None
    norm = float(steer.vector.norms_L[layers].mean())
    out.text(
        f"{clean(steer.vector.meta.get('trait') or args.trait)} of {args.model}: {path}",
        f"layers {layers[0]}-{layers[-1]}, mean length {norm:.4g}",
        f"c* {known.c_star:.4g} (p95 KL {known.kl_p95:.3f} nats)",
        *([made.meta["effect"]] if effect else []),
        *([address] if address else []),
    )
    for said in (known.message, formats.origin(steer.vector, lm.name)):
        if said:
            out.note(said)
    if beside is None:
        out.note(f"{path.parent / NAME} is no card of ours and stays as it is: write to a folder of its own.")
    out.document(
        {
            "command": "vector",
            "file": str(path),
            "card": None if beside is None else str(beside),
            "pushed": address,
            "effect": made.meta.get("effect"),
            "origin": formats.origin(steer.vector, lm.name),
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


def _pushed(path: Path, card: str, name: str, *, public: bool) -> str:
    """Puts the file and its card, and nothing that lies beside them, on the hub; gives the address."""
    with TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        (Path(folder) / NAME).write_text(card, encoding="utf-8")
        return hub.push(Path(folder), name, public=public)
