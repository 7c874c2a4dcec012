"""What the page and the command line ask of the engine, and the thresholds of its verdicts."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from steer_heal.config.base import (
    AUTO,
    AUTO_FRAME,
    DEFAULT_BAND,
    DEFAULT_TRAIT,
    MAX_PROMPT_CHARS,
    MAX_ROWS,
    Alpha,
    Band,
    Method,
    SampleSettings,
    Settings,
    check_band,
)
from steer_heal.config.gates import EVERYWHERE, Gate
from steer_heal.config.mixes import MixText, one_gate


class Added(Settings):
    """What is added to which layers, and for which tokens of the free answers (`where`, as in `gates`).

    `mix`: what is added instead of the trait's vector, alpha times; the trait is then what is measured.
    """

    trait: str = DEFAULT_TRAIT
    band: Band = DEFAULT_BAND
    sample: SampleSettings = SampleSettings()
    method: Method = AUTO
    where: Gate = EVERYWHERE
    mix: MixText = ""

    _band = field_validator("band")(check_band)


class Steering(Added):
    """The same of a request in which something is steered: its gate is said once."""

    @model_validator(mode="after")
    def _one_gate(self) -> Self:
        one_gate(self.mix, self.where)
        return self

    @property
    def gate(self) -> str:
        """Which tokens of the free answers are steered, wherever that was said."""
        return one_gate(self.mix, self.where)


class SteerRequest(Steering):
    """One steered answer as the page asks for it; alpha in units of c*.

    `carried`: whether each token is also told with what it carries of the trait.
    """

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARS)
    alpha: Alpha = 1.0
    carried: bool = False

    @property
    def has_own_kl(self) -> bool:
        """Whether what calibration measured of the trait's vector says nothing of its KL."""
        return bool(self.mix) or self.gate != EVERYWHERE

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty: choose a vignette or type one")
        return prompt


class DoseRequest(Steering):
    """A sweep over alpha at one band; `controls`: beside how many random directions at the same KL. Or a grid
    of alpha and layers; `coarse`: each layer just in three neighbours together.

    Profiles, and so the trait's movement, are measured with every token steered.
    """

    alphas: tuple[Alpha, ...] = Field(
        default=(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), min_length=1, max_length=MAX_ROWS
    )
    prompts: tuple[str, ...] = ()
    n_vignettes: int | None = Field(default=None, ge=1)
    refine: bool = False
    coarse: bool = False
    frame: str = AUTO_FRAME
    controls: int = Field(default=8, ge=0, le=MAX_ROWS)


class Thresholds(Settings):
    """Where a word of the text's health or of the answers changes; shown on the page wherever a word is.

    Of the text: perplexity and relevance, both under base, are relative to those of base's own text;
    repetition is the share of the text that says itself again, variety the share of distinct words. Of the
    answers to the vignettes: their mass is relative to base's. How the text's were chosen, and what they
    find: docs/reports/text-health.md.
    """

    perplexity_damaged: float = 1.5
    perplexity_broken: float = 6.0
    relevance_damaged: float = 0.7
    relevance_broken: float = 0.35
    variety_broken: float = 0.5
    repetition_broken: float = 0.3
    mass_weakened: float = 0.95
    mass_lost: float = 0.85


THRESHOLDS = Thresholds()
