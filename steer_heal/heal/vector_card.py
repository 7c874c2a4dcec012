"""A vector that travels: the recipe that its file carries, and the card beside it."""

from dataclasses import replace
from pathlib import Path

from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.heal import cards
from steer_heal.records import Effect, Trait
from steer_heal.vectors.vector import SteeringVector

RECIPE = {
    "model": "made on",
    "trait": "trait",
    "method": "method",
    "contexts": "contexts",
    "scenes": "scenes",
    "pairs": "pairs of replies",
    "measured_on": "dose measured on",
    "steered_layers": "steered layers",
    "c_star": "c*",
    "kl_p95": "KL at c*, 95th percentile over tokens, in nats",
    "effect": "what it does at c*",
}
"""What a file says of its vector, by its name there, and in words."""
_USE = {
    ".gguf": "llama.cpp: `--control-vector-scaled {file} {c_star}`; repeng: `ControlVector.import_gguf`.",
    ".npz": "numpy: `np.load`, one array a layer.",
    ".safetensors": "safetensors: `load_file`; written for steering-lite it opens with its `Vector.load`.",
}


def travelling(steer: CalibratedVector, model: str, effect: Effect | None) -> SteeringVector:
    """The vector with its recipe: what was known of it, and its c* at these layers on this model.

    An effect that the file told before is kept only where it is of the same dose.
    """
    known = steer.calibration
    measured = {
        "measured_on": model,
        "steered_layers": ",".join(map(str, steer.layers)),
        "c_star": f"{known.c_star:.6g}",
        "kl_p95": f"{known.kl_p95:.4g}",
    }
    meta = steer.vector.meta
    if effect is not None:
        measured["effect"] = f"{effect.sentence()} ({effect.n_vignettes} vignettes, frame {effect.frame})"
    elif any(meta.get(name) != value for name, value in measured.items()):
        meta = {name: value for name, value in meta.items() if name != "effect"}
    return replace(steer.vector, meta=meta | measured)


def card(vector: SteeringVector, file: str, trait: Trait | None) -> str:
    """Markdown with the hub's front matter. `trait`: none where the vector's own is not known here."""
    meta = vector.meta
    said = [(words, _plain(meta[name])) for name, words in RECIPE.items() if meta.get(name)]
    use = _USE[Path(file).suffix.lower()].format(file=file, c_star=meta["c_star"])
    title = _plain(meta.get("trait", "")) or "steering vector"
    effect = (
        "" if "effect" in meta else "\n\nWhat it does was not measured: see `python -m steer_heal effect`."
    )
    parts = [
        cards.front_matter(meta["measured_on"], [], ["steering-vector"]),
        f"# {title}: a steering vector",
        f"`{file}` holds a direction a layer; c* times it, added to the residual stream behind each steered "
        "layer, is a KL of about 1 nat to the model without it.",
        f"## Use\n\n- steer-heal: `python -m steer_heal vector --from {file} --out NEW`\n- {use}",
        *([cards.about_trait(trait)] if trait else []),
        "## Recipe\n\n| | |\n| --- | --- |\n"
        + "\n".join(f"| {words} | {value} |" for words, value in said)
        + effect,
        "## Limits\n\nThe direction and its c* are of this model alone; on another, even of the same width, "
        "they say nothing. What it does is measured on short texts: judge it on your own task first.",
    ]
    return "\n\n".join(parts) + "\n"


def write_beside(path: Path, text: str) -> Path | None:
    """Puts the card beside the file; none where a README is there that is no card of ours. Errors:
    `SettingsError`."""
    there = path.parent / cards.NAME
    if there.exists() and f"- {cards.OURS}" not in there.read_text(encoding="utf-8", errors="replace"):
        return None
    return cards.write(path.parent, text)


def _plain(text: str) -> str:
    """A text of a file as one line of a table, without what Markdown or HTML would read."""
    kept = " ".join(text.split())[:300]
    return kept.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
