"""`steer`: one prompt, answered by base and steered."""

from dataclasses import asdict, replace

from steer_heal.cli.arguments import Namespace, drawing
from steer_heal.cli.tables import Out, clean
from steer_heal.config import SteerRequest, build, gate_in_words
from steer_heal.engine import Engine
from steer_heal.records import SteerFrame


def run(args: Namespace, out: Out) -> int:
    """Exit code 0 when both answers were written."""
    names = ("prompt", "trait", "alpha", "band", "method", "where", "mix")
    request = build(
        SteerRequest, **{name: getattr(args, name) for name in names}, sample=drawing(args), carried=True
    )
    engine = Engine(args.model, cache_dir=args.cache)
    out.model(engine.info)
    try:
        for frame in engine.steer(request, session="cli"):
            out.progress(frame.message or f"{len(frame.steered)} tokens")
        if request.has_own_kl and (dose := engine.kl(request, session="cli")):
            frame = replace(frame, dose_nats=dose.nats, message=dose.message or frame.message)
    finally:
        engine.close()
    _show(request, frame, out)
    return 0


def _show(request: SteerRequest, frame: SteerFrame, out: Out) -> None:
    texts = {name: "".join(token.text for token in getattr(frame, name)) for name in ("base", "steered")}
    health = frame.health
    about = [f"alpha {request.alpha:g} of {request.mix or request.trait}"]
    about += [f"steered: {gate_in_words(request.gate)}"]
    about += [] if frame.c_star is None else [f"c* {frame.c_star:.4g}"]
    about += [] if frame.dose_nats is None else [f"KL {frame.dose_nats:.3g} nats"]
    about += [] if health is None else [f"text {health.verdict}"]
    out.text(*(f"{name}: {clean(text)}" for name, text in texts.items()), ", ".join(about))
    if frame.message:
        out.note(frame.message)
    tokens = [
        {"text": token.text, "kl": token.kl, "carries": token.carries, "share": token.steered}
        for token in frame.steered
    ]
    base = [{"text": token.text, "carries": token.carries} for token in frame.base]
    asked = request.model_dump(exclude={"sample"}) | {"sample": request.sample.model_dump(exclude_none=True)}
    out.document(
        {"command": "steer", **asked, **texts, "c_star": frame.c_star, "dose_nats": frame.dose_nats}
        | {"health": health and asdict(health), "message": frame.message, "tokens": tokens}
        | {"base_tokens": base}
    )
