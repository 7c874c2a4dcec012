"""tinymfv, renamed moralmaps: its vignette sets, its own evaluation, its forced choice as a frame of ours.

Its prompt asks which norm a text violates, with Clifford's answer sentences as a numbered list in JSON; the
model thinks to the full budget, is interrupted, and its answer's digit is read. Two things of its reading are
kept, to give its numbers: the last token of the thought is generated but never read, and the interruption is
rendered as a chat of its own, BOS included. The frame itself is data, in data/frames.json. Sources:
`moralmaps.guided` (01e9026); answer sentences: Clifford et al., 2015, doi:10.3758/s13428-014-0551-2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from steer_heal import data
from steer_heal.config import FOUNDATIONS, SettingsError
from steer_heal.data import CONDITION, CONDITIONS, Frame, foundation_name
from steer_heal.evaluate.agreement import agreement
from steer_heal.records import Profile, Vignette, VignetteScore
from steer_heal.vectors.bridges import installed
from steer_heal.vectors.bridges.installed import SETS, THINK_TOKENS

if TYPE_CHECKING:
    from steer_heal.models import LanguageModel


def frame(think_tokens: int = THINK_TOKENS) -> Frame:
    """Its forced choice. `think_tokens` as it counts them: 0 and 1 are both no thought that is read."""
    if think_tokens < 0:
        raise SettingsError("The think budget must be 0 tokens or more.")
    ours = data.frame("tinymfv")
    assert isinstance(ours, Frame)
    return replace(ours, name=f"tinymfv-{think_tokens}", think_budget=max(0, think_tokens - 1))


def available() -> bool:
    return installed.name(installed.TINYMFV) is not None


def vignettes(name: str = "classic", condition: str = CONDITION) -> list[Vignette]:
    """One of its sets. Errors: `SettingsError` when it is not installed, or knows no such set."""
    _known(name, condition)
    return [_vignette(row, condition) for row in _rows(name)]


def evaluate(
    lm: LanguageModel,
    name: str = "classic",
    condition: str = CONDITION,
    *,
    limit: int | None = None,
    think_tokens: int = THINK_TOKENS,
    batch_size: int = 8,
) -> Profile:
    """Its own `evaluate` on the loaded model, as a profile; what it gives NaN counts as answer mass 0.

    Errors: `SettingsError` when it is not installed or refuses.
    """
    _known(name, condition)
    if think_tokens < 1:
        raise SettingsError("tinymfv needs a think budget of at least 1 token.")
    side = lm.tokenizer.padding_side
    pad = lm.tokenizer.pad_token
    try:
        report = _package().evaluate(
            lm.model,
            lm.tokenizer,
            name,
            _rows(name),
            n_vignettes=limit,
            conditions=(condition,),
            max_think_tokens=think_tokens,
            batch_size=batch_size,
            return_per_row=True,
            verbose=0,
        )
    except (AssertionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"tinymfv refuses {lm.name}: {error}.") from error
    finally:
        lm.tokenizer.padding_side = side
        lm.tokenizer.pad_token = pad
    return profile([scored(row) for row in report["per_row"]])


def profile(scores: Sequence[VignetteScore]) -> Profile:
    """As our own: means of what could be answered, coherence over all."""
    valid = [row for row in scores if row.mass > 0.0]
    n, n_valid = len(scores), len(valid)
    p = {key: sum(row.p[key] for row in valid) / n_valid if valid else 0.0 for key in FOUNDATIONS}
    mass = sum(row.mass for row in scores) / n if n else 0.0
    return Profile(p, mass, n, tuple(scores), n - n_valid, "tinymfv", agreement(scores))


def scored(row: Mapping[str, Any]) -> VignetteScore:
    scores = dict(zip(FOUNDATIONS, map(float, row["score"]), strict=True))
    mass = float(row["pmass_allowed"])
    valid = mass > 0.0 and all(value == value for value in scores.values())
    p = (
        dict(zip(FOUNDATIONS, map(float, row["p"]), strict=True))
        if valid
        else dict.fromkeys(FOUNDATIONS, 0.0)
    )
    label = foundation_name(str(row["foundation_coarse"])) or str(row["foundation_coarse"])
    return VignetteScore(
        str(row["id"]), label, scores, p, mass if valid else 0.0, float(row["nll_prefill"]), 0.0
    )


def _package() -> Any:
    return installed.load(installed.TINYMFV)


def _rows(name: str) -> list[dict[str, Any]]:
    load: Callable[[str], list[dict[str, Any]]] = _package().load_vignettes
    try:
        return load(name)
    except (ValueError, OSError, AssertionError) as error:
        raise SettingsError(f"tinymfv's vignettes {name!r} cannot be read: {error}.") from error


def _vignette(row: Mapping[str, Any], condition: str) -> Vignette:
    label = foundation_name(str(row["foundation_coarse"]))
    if label is None:
        raise SettingsError(f"tinymfv's vignette {row['id']} is of no foundation we know.")
    return Vignette(str(row["id"]), label, str(row[condition]), condition)


def _known(name: str, condition: str) -> None:
    if name not in SETS:
        raise SettingsError(f"Unknown vignette set {name!r}: choose one of {', '.join(SETS)}.")
    if condition not in CONDITIONS:
        raise SettingsError(f"Unknown condition {condition!r}: choose one of {', '.join(CONDITIONS)}.")
