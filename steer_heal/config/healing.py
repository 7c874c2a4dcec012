"""A heal run's settings, their presets, and where its headline changes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .base import (
    AUTO_FRAME,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    MAX_ALPHA,
    MAX_NEW_TOKENS,
    MAX_ROUNDS,
    Alpha,
    Band,
    CalibrateSettings,
    ExtractSettings,
    Settings,
    SettingsError,
    Temperature,
    TopK,
    TopP,
    build,
    check_band,
)


class DataSettings(Settings):
    """The over-steered completions a round is trained on.

    The alphas are multiplied by one of `scales`: from where the last round was, down to the first at which
    `survival` of a probe of `n_probe` completions passes the filter, or up by one. At that dose completions
    are made until `n_kept` are kept, at most `n_completions`; fewer than `min_kept` end the run. At 0 the
    student is not steered: the round only teaches it its own coherent text. `temperature`, `top_k` and
    `top_p` hold for whatever the run writes freely, base's text and the healed model's too.
    """

    alphas: tuple[Alpha, ...] = Field(default=(0.5, 1.0, 1.5, 2.0), min_length=1)
    scales: tuple[Annotated[float, Field(ge=0.0, le=4.0)], ...] = Field(
        default=(1.0, 0.8, 0.65, 0.3, 0.2, 0.14, 0.1, 0.05, 0.0), min_length=1
    )
    survival: float = Field(default=0.5, ge=0.0, le=1.0, description="share of a probe to be kept")
    n_probe: int = Field(default=32, ge=1, le=256, description="completions of a probe")
    n_kept: int = Field(default=256, ge=2, le=20_000, description="enough to end collecting")
    n_completions: int = Field(default=1536, ge=4, le=20_000, description="hard cap")
    min_kept: int = Field(default=16, ge=2, description="fewer end the run")
    n_prompts: int | None = Field(default=None, ge=1, description="prompts they answer; all when none")
    max_new_tokens: int = Field(default=64, ge=8, le=MAX_NEW_TOKENS)
    temperature: Temperature | None = Field(default=None, description="of all free text; the model's if none")
    top_k: TopK | None = Field(default=None, description="of all free text; 0: no filter")
    top_p: TopP | None = Field(default=None, description="of all free text; 1: no filter")


class FilterSettings(Settings):
    """A completion is kept when every score is within its cut.

    With `persona`, perplexities count as they are under base or under base told the persona as a system
    prompt, each over what it writes itself, whichever is less: text with the trait is coherent where either
    finds it likely. Of a prompt's coherent ones the `trait_share` is kept, rounded up, that the persona makes
    likelier by most.
    """

    max_perplexity_ratio: float = Field(default=1.5, gt=1.0, description="perplexity under base / base's own")
    persona: bool = Field(default=True, description="as likely under base told the persona will do")
    trait_share: float = Field(
        default=0.25, gt=0.0, le=1.0, description="of a prompt's coherent ones, those with most of the trait"
    )
    max_repetition: float = Field(
        default=0.15, gt=0.0, le=1.0, description="most repeated 2- to 4-gram, words or characters"
    )
    min_words: int = Field(default=4, ge=1)
    max_tail_ratio: float = Field(
        default=1.6, gt=1.0, description="the same over the last quarter of the completion"
    )
    max_boilerplate: int = Field(default=0, ge=0, description="refusals and talk of being an assistant")
    max_narration: int = Field(default=0, ge=0, description="first-person narration of the trait")


class TrainSettings(Settings):
    """The LoRA and its loss: NLL + lam * relu(D - tau) + distil * (what of the steering is not learnt yet),
    D a divergence in nats per token.

    `layers`: which blocks carry the LoRA; "band" is the steered ones and the one before them, where a change
    does downstream what steering did, also on prompts unlike the trained ones. `distil`: weight of the
    squared distance of the residual behind the band from that of the student steered at `distil_alpha` times
    the round's multiplier, at least `distil_least` (and times `distil_later` after the first round), over
    what steering at `distil_alpha` moves; after the first round its weight is `distil_fade` times as large.
    In round n, lam is
    lam * lam_growth^(n - 1) and lr is lr * lr_decay^(n - 1). `spectral`: weight of the square of the update's
    largest singular value. `patience`: epochs without a better held-out NLL after which the round ends, at
    its best epoch; 0 trains them all. `replay`: completions of earlier rounds, as a share of the round's own;
    the first round repeats as many of its own.
    """

    layers: Literal["band", "all"] = "band"

    divergence: Literal["nll", "kl_fwd", "kl_rev"] = "kl_rev"
    aggregate: Literal["mean", "rmse", "p95", "max"] = "rmse"
    reference: Literal["prev", "base"] = "prev"
    lam: float = Field(default=0.3, ge=0.0, description="slope of the barrier")
    lam_growth: float = Field(default=1.0, gt=0.0, le=10.0, description="factor of lam from round to round")
    tau: float = Field(default=1.0, ge=0.0, description="nats that are free of it")
    distil: float = Field(default=4.0, ge=0.0, description="weight of what of the steering is not learnt yet")
    distil_alpha: float = Field(default=1.6, gt=0.0, le=MAX_ALPHA, description="in units of c*")
    distil_least: float = Field(default=0.3, ge=0.0, le=4.0, description="least multiplier it is taken at")
    distil_later: float = Field(default=0.6, gt=0.0, description="its factor after the first round")
    distil_fade: float = Field(default=0.25, ge=0.0, description="factor of distil after the first round")
    spectral: float = Field(default=0.0, ge=0.0, description="weight of the largest singular value, squared")
    rank: int = Field(default=8, ge=1, le=256)
    lora_alpha: float = Field(default=16.0, gt=0.0)
    lr: float = Field(default=4e-3, gt=0.0, le=1.0)
    lr_decay: float = Field(default=0.75, gt=0.0, le=1.0, description="factor of lr from round to round")
    warmup: float = Field(default=0.1, ge=0.0, le=1.0, description="share of the steps")
    epochs: int = Field(default=2, ge=1, le=100)
    patience: int = Field(default=0, ge=0, description="epochs without gain before an early stop; 0: none")
    replay: float = Field(default=0.5, ge=0.0, le=10.0, description="earlier texts, of the round's own")
    batch_size: int = Field(default=16, ge=1)
    grad_accumulation: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=0.0, ge=0.0)
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0, description="share of the kept completions")


class EvalSettings(Settings):
    """The seven foundations, on the same vignettes for base, steered and healed."""

    frame: str = Field(default=AUTO_FRAME, description="how it is asked; auto: what agrees best on base")
    vignettes: str | None = Field(default=None, description="a JSONL file; the bundled set when none")
    condition: Literal["other_violate", "self_violate"] | None = "other_violate"
    n_vignettes: int | None = Field(default=None, ge=1, description="all when none")
    batch_size: int = Field(default=32, ge=1)
    n_answers: int = Field(default=12, ge=2, description="free answers for the text's health")
    controls: int = Field(default=0, ge=0, le=64, description="random directions it is held against")


class HealSettings(Settings):
    """One heal run, whole: what is written into its config.json."""

    model: str
    trait: str = DEFAULT_TRAIT
    rounds: int = Field(default=3, ge=1, le=MAX_ROUNDS)
    seed: int = Field(default=0, ge=0, lt=2**31)
    preset: Literal["quick", "standard"] = "quick"
    name: str = Field(default="", max_length=80)
    band: Band = DEFAULT_BAND
    extract: ExtractSettings = ExtractSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    data: DataSettings = DataSettings()
    filter: FilterSettings = FilterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvalSettings = EvalSettings()

    _band = field_validator("band")(check_band)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "data": {"n_kept": 192, "n_completions": 1152, "max_new_tokens": 40},
    },
    "standard": {},
}


def heal_settings(preset: str = "quick", /, **overrides: Any) -> HealSettings:
    """A run's settings: the preset, then the caller's values (nested dicts merge)."""
    if preset not in PRESETS:
        raise SettingsError(f"Unknown preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    return build(HealSettings, **{**_merged(PRESETS[preset], overrides), "preset": preset})


def changed(settings: HealSettings, /, **changes: Any) -> HealSettings:
    """The settings with other values in some places (nested dicts merge). Errors: `SettingsError`."""
    return build(HealSettings, **_merged(settings.model_dump(), changes))


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: (values.get(key), value) for key, value in changes.items()}
    are = {k: {**a, **b} for k, (a, b) in both.items() if isinstance(a, dict) and isinstance(b, dict)}
    return {**values, **changes, **are}


def describe_settings() -> list[tuple[str, str, str]]:
    """(name, default, about) of every setting of the method, in the order in which they are used."""
    rows = []
    for part, cls in _PARTS.items():
        for name, found in cls.model_fields.items():
            rows.append((f"{part}.{name}", _told(found.default), found.description or ""))
    return rows


def _told(value: Any) -> str:
    return json.dumps(value) if isinstance(value, tuple | bool) or value is None else str(value)


def named_settings(text: str) -> dict[str, Any]:
    """Lines of `part.name=value`, values as JSON or as plain text, as nested changes for `heal_settings`.

    Blank lines count for nothing. Errors: `SettingsError` for a line that is not one, or an unknown name.
    """
    known = {name for name, _, _ in describe_settings()}
    changes: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = (piece.strip() for piece in line.partition("="))
        if not equals or name not in known:
            raise SettingsError(f"{line[:80]!r} is no setting: write a line such as train.lam=0.5.")
        part, _, key = name.partition(".")
        changes.setdefault(part, {})[key] = json_or_text(value)
    return changes


def json_or_text(value: str) -> Any:
    """What a person typed, as JSON where it is some that can be read, else as text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


_PARTS: dict[str, type[Settings]] = {
    "extract": ExtractSettings,
    "calibrate": CalibrateSettings,
    "data": DataSettings,
    "filter": FilterSettings,
    "train": TrainSettings,
    "evaluate": EvalSettings,
}


class HealThresholds(Settings):
    """Where a round's headline changes; printed with it. Perplexity counts relative to that of what base
    writes under the persona as a system prompt, answer mass and relevance to base's, `spill` is the largest
    movement of a foundation off the target over the mean movement of the target's; a target foundation with
    less than `room` to move in is not counted."""

    mass_collapsed: float = 0.85
    looping_collapsed: float = 0.1
    perplexity_collapsed: float = 3.0
    relevance_collapsed: float = 0.3
    retention_kept: float = 0.5
    spill: float = 1.0
    room: float = 0.05
    mass_healthy: float = 0.95
    looping_healthy: float = 0.02
    perplexity_healthy: float = 1.5
    relevance_healthy: float = 0.6


HEAL_THRESHOLDS = HealThresholds()
