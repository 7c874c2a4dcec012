"""A heal run's settings, their presets, and where its headline changes."""

import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from steer_heal.config.base import (
    AUTO_FRAME,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
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
from steer_heal.config.gates import EVERYWHERE, FORMS, Gate
from steer_heal.config.mixes import MixText, one_gate, read_mix
from steer_heal.config.requests import THRESHOLDS


class DataSettings(Settings):
    """A round's answers, from which the filter keeps some. The last three are how whatever the run writes
    freely is drawn, base's text and the healed model's too."""

    alphas: tuple[Alpha, ...] = Field(
        default=(0.8,), min_length=1, description="Doses at which each prompt is answered, in units of c*."
    )
    where: Gate = Field(
        default=EVERYWHERE,
        description=f"Tokens that are steered, here and in the writer that is imitated: {FORMS}.",
    )
    later: float = Field(
        default=0.3, gt=0.0, le=1.0, description="All doses of a round as a share of the last round's."
    )
    n_answers: int = Field(
        default=270, ge=4, le=20_000, description="Answers that the steered model writes in a round."
    )
    n_plain: int = Field(
        default=185,
        ge=0,
        le=20_000,
        description="Answers that base writes to prompts off the trait in a round.",
    )
    min_kept: int = Field(default=8, ge=2, description="Kept answers below which a round ends the run.")
    max_new_tokens: int = Field(default=48, ge=8, le=MAX_NEW_TOKENS, description="Longest answer, in tokens.")
    temperature: Temperature | None = Field(
        default=None, description="Temperature of all free text; the model's own when none."
    )
    top_k: TopK | None = Field(
        default=None, description="Likeliest tokens that free text is drawn from; 0 for all."
    )
    top_p: TopP | None = Field(
        default=None, description="Probability of the tokens that free text is drawn from; 1 for all."
    )


class FilterSettings(Settings):
    """An answer is kept when every reading of it, under the base without steering, is within its cut.

    The cuts are where a text's word changes from fine (`Thresholds`), so what is kept reads as fine. Kept
    answers alone are made likelier, and a round that has too few of them ends the run; a writer is imitated
    on all of its answers.
    """

    max_perplexity_ratio: float = Field(
        default=THRESHOLDS.perplexity_damaged,
        gt=0.0,
        description="Highest perplexity of a kept answer, as a multiple of that of base's own text.",
    )
    min_relevance_ratio: float = Field(
        default=THRESHOLDS.relevance_damaged,
        description="Lowest relevance of a kept answer, as a multiple of that of base's own text.",
    )
    max_repetition: float = Field(
        default=THRESHOLDS.repetition_broken,
        gt=0.0,
        le=1.0,
        description="Largest share of a kept answer that repeats itself.",
    )
    min_variety: float = Field(
        default=THRESHOLDS.variety_broken,
        ge=0.0,
        le=1.0,
        description="Smallest share of distinct words in a kept answer.",
    )


class TrainSettings(Settings):
    """The LoRA on the steered blocks, its update scaled by 2, and its loss.

    loss = likelihood * NLL + lam * relu(D - tau), D being a divergence of the student from the reference, in
    nats a token; with "nll" there is none. By default the student imitates each answer's writer, and nothing
    else. What that does on smollm2, on which it was tried: docs/reports/healing.md.
    """

    divergence: Literal["nll", "kl_fwd", "kl_rev"] = Field(
        default="kl_fwd",
        description="D: none, KL(reference || student) or KL(student || reference), in nats.",
    )
    reference: Literal["writer", "prev", "base"] = Field(
        default="writer",
        description="The model that D is measured from: the answer's writer (the steered student, or base "
        "where the prompt is plain), the round before, or base.",
    )
    likelihood: float | None = Field(
        default=None,
        ge=0.0,
        description="Weight of the kept answers' NLL, at the temperature they were drawn at; none: 0 where "
        "the writer is imitated, 1 elsewhere.",
    )
    teacher_alpha: Alpha = Field(
        default=1.0, description="Dose of the steered writer that is imitated, in units of c*."
    )
    lam: float = Field(default=1.0, ge=0.0, description="Weight of D beyond tau.")
    tau: float = Field(default=0.0, ge=0.0, description="D that costs nothing, in nats a token.")
    rank: int = Field(default=8, ge=1, le=256, description="Rank of the LoRA.")
    lr: float = Field(default=1e-3, gt=0.0, le=1.0, description="Highest learning rate of AdamW.")
    epochs: int = Field(default=2, ge=1, le=100, description="Times that each answer is trained on.")
    batch_size: int = Field(default=8, ge=1, description="Answers in a step.")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW's weight decay.")

    @property
    def imitates(self) -> bool:
        """Whether the student learns what the writer of its answers would have said at each token."""
        return self.divergence != "nll" and self.reference == "writer" and self.lam > 0.0

    @property
    def nll_weight(self) -> float:
        """`likelihood`, and what it is where it is none."""
        return float(not self.imitates) if self.likelihood is None else self.likelihood

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if self.nll_weight == 0.0 and not self.imitates:
            raise ValueError("likelihood 0 leaves nothing to learn where no writer is imitated: raise it")
        return self


class EvalSettings(Settings):
    """The seven foundations, on the same vignettes for base, steered and healed."""

    frame: str = Field(
        default=AUTO_FRAME, description="How a foundation is asked for; auto takes what agrees best on base."
    )
    vignettes: str | None = Field(default=None, description="A JSONL file of vignettes; ours when none.")
    n_vignettes: int | None = Field(default=None, ge=1, description="Vignettes that count; all when none.")
    n_answers: int = Field(
        default=12, ge=2, description="Free answers that the text's health is measured on."
    )
    controls: int = Field(
        default=3, ge=0, le=64, description="Random directions that steering at alpha 1 has to outdo."
    )


MAX_RUN_NAME_CHARS = 80


class HealSettings(Settings):
    """One heal run, whole: what is written into its config.json.

    `mix`: what is added instead of the trait's vector; the trait, one that it adds, is then what is measured.
    """

    model: str
    trait: str = DEFAULT_TRAIT
    mix: MixText = ""
    rounds: int = Field(default=3, ge=1, le=MAX_ROUNDS)
    seed: int = Field(default=0, ge=0, lt=2**31)
    preset: Literal["quick", "standard"] = "quick"
    name: str = Field(default="", max_length=MAX_RUN_NAME_CHARS)
    band: Band = DEFAULT_BAND
    extract: ExtractSettings = ExtractSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    data: DataSettings = DataSettings()
    filter: FilterSettings = FilterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvalSettings = EvalSettings()

    _band = field_validator("band")(check_band)

    @model_validator(mode="after")
    def _measures_what_it_adds(self) -> Self:
        one_gate(self.mix, self.data.where)
        if not self.mix:
            return self
        mix = read_mix(self.mix)
        if any(term.ablates for term in mix.terms):
            raise ValueError("a run teaches what is added: leave ablate out of the mix")
        if not mix.adds:
            raise ValueError("a run needs a trait that its mix adds: give one a number above 0")
        if self.trait not in mix.adds:
            raise ValueError(
                f"a run measures a trait that its mix adds: choose {' or '.join(mix.adds)} as trait, not "
                f"{self.trait}"
            )
        return self

    @property
    def gate(self) -> str:
        """Which tokens of the answers are steered, wherever that was said."""
        return one_gate(self.mix, self.data.where)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "data": {"n_answers": 180, "n_plain": 125},
        "evaluate": {"n_vignettes": 70},
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


RETIRED: dict[str, set[str]] = {
    "data": {"scales", "survival", "n_probe", "n_kept", "n_completions", "n_prompts"},
    "filter": {"persona", "trait_share", "max_tail_ratio", "max_boilerplate", "max_narration", "min_words"},
    "train": {
        "layers", "lam_growth", "distil", "distil_alpha", "distil_least", "distil_later", "distil_fade",
        "spectral", "lora_alpha", "lr_decay", "warmup", "patience", "replay", "grad_accumulation", "held_out",
        "aggregate",
    },
    "evaluate": {"condition", "batch_size"},
}  # fmt: skip
"""Settings that runs of older versions have in their config.json, and that say nothing any more."""


def without_retired(document: Any) -> tuple[Any, bool]:
    """An older run's settings as they are read today, and whether anything was left out: a divergence whose
    mean was asked for by name is still one's mean."""
    if not isinstance(document, dict):
        return document, False
    asked = document.get("train")
    if isinstance(asked, dict) and asked.get("aggregate") == "mean":
        document = {**document, "train": {key: asked[key] for key in asked if key != "aggregate"}}
    kept = {
        part: {key: value for key, value in row.items() if key not in RETIRED.get(part, ())}
        if isinstance(row, dict)
        else row
        for part, row in document.items()
    }
    return kept, kept != document


def stored_settings(text: str | bytes) -> tuple[HealSettings, bool]:
    """The settings that a config.json holds, without those that say nothing any more, and whether it had any.

    Errors: `ValueError` for no JSON, pydantic's own for no settings of ours.
    """
    document, older = without_retired(json.loads(text))
    return HealSettings.model_validate_json(json.dumps(document)), older


def describe_settings() -> list[tuple[str, str, str]]:
    """(name, default, about) of every setting, in the order in which they are used."""
    return [
        (f"{part}.{name}", _told(field.default), field.description or "")
        for part, cls in _PARTS.items()
        for name, field in cls.model_fields.items()
    ]


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
    """Where a round's headline changes; printed with it. A target foundation with less than `room` to move in
    is not counted. Chosen by hand: no report fits them to a model."""

    mass_collapsed: float = Field(default=0.85, description="collapsed: answer mass, of base's, below")
    looping_collapsed: float = Field(
        default=0.1, description="collapsed: share of sampled answers that loop, above, and above base's"
    )
    perplexity_collapsed: float = Field(default=3.0, description="collapsed: perplexity, of base's, above")
    relevance_collapsed: float = Field(default=0.4, description="collapsed: relevance, of base's, below")
    retention_kept: float = Field(default=0.5, description="too little trait kept: retention below")
    spill: float = Field(
        default=1.0, description="not specific: movement off the target, of the target's own, from"
    )
    room: float = Field(default=0.05, description="a target foundation counts with room to move of at least")
    mass_healthy: float = Field(default=0.95, description="kept but costly: answer mass, of base's, below")
    looping_healthy: float = Field(
        default=0.02,
        description="kept but costly: share of sampled answers that loop, above, and above base's",
    )
    perplexity_healthy: float = Field(
        default=1.5, description="kept but costly: perplexity, of base's, above"
    )
    relevance_healthy: float = Field(default=0.6, description="kept but costly: relevance, of base's, below")
    diversity_healthy: float = Field(
        default=0.8, description="kept but costly: distinct bigrams over all answers, of base's, below"
    )
    facts_healthy: float = Field(
        default=0.95, description="kept but costly: right answers to facts, of base's, below"
    )
    neutral_kl_healthy: float = Field(
        default=0.15, description="kept but costly: KL from base on neutral prompts, nats a token, above"
    )


HEAL_THRESHOLDS = HealThresholds()
