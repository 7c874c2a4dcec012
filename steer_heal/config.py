"""Frozen settings, presets and limits; every message says what to do.

Settings are validated once, when they are built; an unknown name is an error. Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

FOUNDATIONS: tuple[str, ...] = (
    "Care",
    "Fairness",
    "Loyalty",
    "Authority",
    "Sanctity",
    "Liberty",
    "SocialNorms",
)
DEFAULT_MODEL = "demo"
GEMMA = "google/gemma-3-1b-it"
DEFAULT_TRAIT = "care_over_authority"
DEFAULT_BAND = (0.4, 0.6)

OWN_METHODS = ("mean_diff", "mean_diff_raw", "pca")
LITE_PREFIX = "steering-lite:"
"""Before the name of a method that the installed steering-lite has."""

MAX_PROMPT_CHARS = 8_000
MAX_PROMPT_TOKENS = 2_048
MAX_NEW_TOKENS = 512
MAX_ROUNDS = 32
MAX_ROWS = 64
MAX_ALPHA = 64.0
MAX_RUNS_AT_ONCE = 16
MAX_QUEUED_RUNS = 100
MAX_UPLOAD_BYTES = 64_000_000
"""Of one uploaded file: a vector of a 70-billion-parameter model is 3 MB, an adapter of ours a few."""


class SettingsError(ValueError):
    """Bad settings or bad input; the message is one sentence a person can act on."""


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def build(cls: type[S], /, **values: Any) -> S:
    """`cls(**values)`, with pydantic's report folded into one `SettingsError` sentence."""
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or cls.__name__
        raise SettingsError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from error


def check_band(band: tuple[float, float]) -> tuple[float, float]:
    """The band as (low, high) fractions of depth; `ValueError` when reversed or outside 0 to 1."""
    low, high = band
    if not 0.0 <= low <= 1.0 or not 0.0 <= high <= 1.0:
        raise ValueError(
            f"the band {low:g}-{high:g} leaves the model: give two fractions of depth from 0 to 1"
        )
    if low > high:
        raise ValueError(f"the band {low:g}-{high:g} is reversed: give the lower end first")
    return band


def check_method(name: str) -> str:
    """One of our methods, or a name of steering-lite's (whether it is here is seen when it is used)."""
    if name not in OWN_METHODS and not (name.startswith(LITE_PREFIX) and len(name) > len(LITE_PREFIX)):
        known = ", ".join(OWN_METHODS)
        raise ValueError(f"unknown method {name!r}: choose one of {known}, or {LITE_PREFIX}NAME")
    return name


Method = Annotated[str, AfterValidator(check_method)]
Alpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA)]
Band = tuple[float, float]


class SampleSettings(Settings):
    """How tokens are drawn. `None` takes the model's own generation setting; `greedy` overrides all."""

    max_new_tokens: int = Field(default=60, ge=1, le=MAX_NEW_TOKENS)
    greedy: bool = False
    temperature: float | None = Field(default=None, gt=0.0, le=10.0)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=0, lt=2**31)


class ExtractSettings(Settings):
    """How a vector is extracted."""

    method: Method = "mean_diff"
    n_contexts: int = Field(default=128, ge=2)
    batch_size: int = Field(default=16, ge=1)


class CalibrateSettings(Settings):
    """c*: the coefficient at which `quantile` of KL(steered || base) over tokens is `target_kl` nats."""

    target_kl: float = Field(default=1.0, gt=0.0)
    quantile: float = Field(default=0.95, gt=0.0, le=1.0)
    n_tokens: int = Field(default=20, ge=1)
    n_prompts: int = Field(default=8, ge=1)
    bracket: tuple[float, float] = (0.1, 1024.0)
    tolerance: float = Field(default=0.005, gt=0.0, description="relative, in the coefficient")

    @field_validator("bracket")
    @classmethod
    def _ordered(cls, bracket: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < bracket[0] < bracket[1]:
            raise ValueError("the bracket must be two rising positive coefficients")
        return bracket


class DataSettings(Settings):
    """The over-steered completions a round is trained on.

    The alphas are those of a fresh run; each round multiplies them by the largest of `scales` at which
    `survival` of a probe of `n_probe` completions passes the filter.
    """

    alphas: tuple[Alpha, ...] = (1.25, 1.5, 1.75, 2.0)
    scales: tuple[Annotated[float, Field(gt=0.0, le=4.0)], ...] = Field(
        default=(1.0, 0.8, 0.65, 0.5, 0.35), min_length=1
    )
    survival: float = Field(default=0.6, ge=0.0, le=1.0)
    n_probe: int = Field(default=12, ge=1, le=256)
    n_completions: int = Field(default=256, ge=4, le=20_000)
    min_kept: int = Field(default=16, ge=2)
    max_new_tokens: int = Field(default=64, ge=8, le=MAX_NEW_TOKENS)


class FilterSettings(Settings):
    """A completion is kept when every score is within its cut."""

    max_perplexity_ratio: float = Field(default=2.5, gt=1.0, description="perplexity under base / base's own")
    max_repetition: float = Field(
        default=0.3, gt=0.0, le=1.0, description="most repeated 2- to 4-gram, words or characters"
    )
    min_words: int = Field(default=4, ge=1)
    max_tail_ratio: float = Field(
        default=3.0, gt=1.0, description="the same over the last quarter of the completion"
    )
    max_boilerplate: int = Field(default=0, ge=0, description="refusals and talk of being an assistant")
    max_narration: int = Field(default=0, ge=0, description="first-person narration of the trait")


class TrainSettings(Settings):
    """The LoRA and its loss: NLL + lam * relu(D - tau), D a divergence in nats per token.

    `layers`: which blocks carry the LoRA; "band" is the steered ones and the one before them, where a change
    does downstream what steering did, also on prompts unlike the trained ones.
    """

    layers: Literal["band", "all"] = "band"

    divergence: Literal["nll", "kl_fwd", "kl_rev"] = "kl_rev"
    aggregate: Literal["mean", "rmse", "p95", "max"] = "rmse"
    reference: Literal["prev", "base"] = "prev"
    lam: float = Field(default=0.3, ge=0.0)
    tau: float = Field(default=1.0, ge=0.0)
    rank: int = Field(default=8, ge=1, le=256)
    lora_alpha: float = Field(default=16.0, gt=0.0)
    lr: float = Field(default=4e-3, gt=0.0, le=1.0)
    warmup: float = Field(default=0.1, ge=0.0, le=1.0, description="share of the steps")
    epochs: int = Field(default=6, ge=1, le=100)
    batch_size: int = Field(default=16, ge=1)
    grad_accumulation: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=0.0, ge=0.0)
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0, description="share of the kept completions")


class EvalSettings(Settings):
    """The forced choice, on the same vignettes for base, steered and healed."""

    frame: str = "foundations"
    vignettes: str | None = Field(default=None, description="a JSONL file; the bundled set when none")
    condition: Literal["other_violate", "self_violate"] | None = "other_violate"
    n_vignettes: int | None = Field(default=None, ge=1, description="all when none")
    batch_size: int = Field(default=32, ge=1)
    n_answers: int = Field(default=12, ge=2, description="free answers for the text's health")


class HealSettings(Settings):
    """One heal run, whole: what is written into its config.json."""

    model: str = DEFAULT_MODEL
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
        "data": {"n_completions": 128, "max_new_tokens": 40},
    },
    "standard": {"data": {"n_completions": 256}},
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


class SteerRequest(Settings):
    """One steered answer as the page asks for it; alpha in units of c*."""

    trait: str = DEFAULT_TRAIT
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    alpha: Alpha = 1.0
    band: Band = DEFAULT_BAND
    sample: SampleSettings = SampleSettings()
    method: Method = "mean_diff"

    _band = field_validator("band")(check_band)

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty: choose a vignette or type one")
        return prompt


class DoseRequest(Settings):
    """A sweep over alpha at one band."""

    trait: str = DEFAULT_TRAIT
    alphas: tuple[Alpha, ...] = Field(
        default=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), min_length=1, max_length=MAX_ROWS
    )
    band: Band = DEFAULT_BAND
    prompts: tuple[str, ...] = ()
    n_vignettes: int | None = Field(default=None, ge=1)
    sample: SampleSettings = SampleSettings()
    refine: bool = False
    method: Method = "mean_diff"

    _band = field_validator("band")(check_band)


class Thresholds(Settings):
    """Where coherent ends and broken begins; shown on the page wherever a verdict is.

    Answer mass counts relative to base's; perplexity is of the text under base, relative to that of base's
    own text; repetition is the share of the most repeated word or character 2- to 4-gram.
    """

    mass_degraded: float = 0.95
    mass_broken: float = 0.85
    perplexity_degraded: float = 3.0
    perplexity_broken: float = 20.0
    repetition_broken: float = 0.3


THRESHOLDS = Thresholds()

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{2,63}")


def check_run_id(run_id: str) -> str:
    """The id itself when it is one; `SettingsError` otherwise (no path can pass for an id)."""
    if not RUN_ID.fullmatch(run_id):
        raise SettingsError(f"{run_id!r} is not a run id: copy it from the table of runs.")
    return run_id
