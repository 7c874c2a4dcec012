"""What all settings share, the limits, and how a vector is made.

Settings are validated once, when they are built; an unknown name is an error. Nothing here imports torch.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from steer_heal.config.wording import sentence

FOUNDATIONS: tuple[str, ...] = (
    "Care",
    "Fairness",
    "Loyalty",
    "Authority",
    "Sanctity",
    "Liberty",
    "SocialNorms",
)
COLUMNS = {name: "social_norms" if name == "SocialNorms" else name.lower() for name in FOUNDATIONS}
"""What each foundation is called in the store, and in the rows that commands write."""
DEMO = "demo"
"""The model that comes with this project; `sources` holds the order of defaults."""
SMOLLM2 = "smollm2"
GEMMA = "google/gemma-3-1b-it"
DEFAULT_TRAIT = "care_over_authority"
DEFAULT_BAND = (0.4, 0.6)
AUTO_FRAME = "auto"
"""The frame whose answers on base agree best with the labels."""

REPLIES = "replies"
OWN_METHODS = ("mean_diff", "mean_diff_raw", "pca", REPLIES)
AUTO = "auto"
"""Instead of a method: the one in `MODEL_METHODS`."""
MODEL_METHODS = {
    "demo": "mean_diff",
    "gemma-3-1b-it": "mean_diff",
    "smollm2": "replies",
    "smollm2-135m-instruct": "replies",
}
"""How a vector is extracted unless somebody asks for another method, by what it does on the model: the
figures are in docs/reports/extraction.md. A model that was not measured gets the first of `OWN_METHODS`."""
LITE_PREFIX = "steering-lite:"
"""Before the name of a method that the installed steering-lite has."""
VECTOR_FORMATS = {
    "steer-heal": ".safetensors",
    "steering-lite": ".safetensors",
    "gguf": ".gguf",
    "npz": ".npz",
    "tensors": ".safetensors",
}
"""Every format in which a vector can be written, and its file ending."""

MAX_PROMPT_CHARS = 8_000
MAX_PROMPT_TOKENS = 2_048
MAX_CHAT_CHARS = 4 * MAX_PROMPT_CHARS
"""Of a prompt and the turns before it together."""
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


def check_text(text: str) -> str:
    """The text itself; `ValueError` for a lone surrogate, which no encoding and no tokenizer takes: half of
    an emoji that was cut in two, or a byte of a command line that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"its character {error.start + 1}, {text[error.start]!a}"
        raise ValueError(f"the text holds half a character ({where}): remove it or write it anew") from error
    return text


@contextmanager
def one_sentence(say: Callable[[BaseException], str]) -> Iterator[None]:
    """Whatever foreign code or files raise meanwhile becomes the `SettingsError` that `say` makes of it: also
    a panic of Rust, which is no `Exception`."""
    try:
        yield
    except (SettingsError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise SettingsError(say(error)) from error


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, no infinities, no half characters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str):
                check_text(text)
        return value


S = TypeVar("S", bound=Settings)
T = TypeVar("T")


def build(cls: type[S], /, **values: Any) -> S:
    """`cls(**values)`, with pydantic's report folded into one `SettingsError` sentence."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise SettingsError(sentence(error.errors()[0], cls.__name__)) from error


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


def sound(check: Callable[[T], T], value: T) -> T:
    """`check` of the value, outside of settings. Errors: `SettingsError`."""
    try:
        return check(value)
    except ValueError as error:
        raise SettingsError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error


def band_layers(n_layers: int, band: tuple[float, float]) -> tuple[int, ...]:
    """The layers whose centre of depth (l + 1/2) / n_layers lies within the band.

    Errors: `SettingsError` when the band is reversed, leaves 0 to 1, or holds no layer.
    """
    low, high = sound(check_band, band)
    inside = tuple(layer for layer in range(n_layers) if low <= (layer + 0.5) / n_layers <= high)
    if not inside:
        raise SettingsError(
            f"The band {low:g}-{high:g} holds none of the {n_layers} layers: "
            f"widen it to at least {1 / n_layers:.2g}."
        )
    return inside


def check_method(name: str) -> str:
    """One of our methods, or a name of steering-lite's (whether it is here is seen when it is used)."""
    if name not in (AUTO, *OWN_METHODS) and not (
        name.startswith(LITE_PREFIX) and len(name) > len(LITE_PREFIX)
    ):
        known = ", ".join((AUTO, *OWN_METHODS))
        raise ValueError(f"unknown method {name!r}: choose one of {known}, or {LITE_PREFIX}NAME")
    return name


def decided_method(name: str, model: str, *, replies: bool = True) -> str:
    """The method itself, or for `AUTO` the model's: it may be named, a hub id, a folder or a file. `replies`:
    whether the trait has paired replies to use (`Trait.by_replies`), else it is made from its personas."""
    if name != AUTO:
        return name
    if not replies:
        return OWN_METHODS[0]
    called = model.rstrip("/").rpartition("/")[2].lower()
    known = (method for key, method in MODEL_METHODS.items() if called == key or called.startswith(f"{key}."))
    return next(known, OWN_METHODS[0])


Method = Annotated[str, AfterValidator(check_method)]
Alpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA)]
Band = tuple[float, float]


def check_number(value: Any) -> Any:
    """What pydantic may read as a number, which a bool is not."""
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {value}")
    return value


Number = BeforeValidator(check_number)
Temperature = Annotated[float, Number, Field(ge=0.0, le=10.0)]
TopK = Annotated[int, Number, Field(ge=-1), AfterValidator(lambda k: max(0, k))]
TopP = Annotated[float, Number, Field(gt=0.0, le=1.0)]


class SampleSettings(Settings):
    """How tokens are drawn. `None` takes the model's own generation setting; `greedy` overrides all.

    Temperature 0 is greedy too, a `top_k` of 0 or -1 and a `top_p` of 1 filter nothing.
    """

    max_new_tokens: int = Field(default=60, ge=1, le=MAX_NEW_TOKENS)
    greedy: bool = False
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)


class ExtractSettings(Settings):
    """How a vector is extracted."""

    method: Method = Field(default=AUTO, description="How the vector is found; auto is the model's best.")
    n_contexts: int = Field(default=128, ge=2, description="Scenes that the vector is a mean over.")
    batch_size: int = Field(default=16, ge=1, description="Texts that are read at once.")


class CalibrateSettings(Settings):
    """c*: the coefficient at which `quantile` of KL(steered || base) over tokens is `target_kl` nats."""

    target_kl: float = Field(default=1.0, gt=0.0, description="KL(steered || base) at c*, in nats.")
    quantile: float = Field(
        default=0.95, gt=0.0, le=1.0, description="Quantile over the tokens at which that KL is read."
    )
    n_tokens: int = Field(default=20, ge=1, description="Tokens of each greedy answer that is read.")
    n_prompts: int = Field(default=8, ge=1, description="Prompts that are answered.")
    bracket: tuple[float, float] = Field(
        default=(0.1, 1024.0), description="Coefficients between which c* is looked for."
    )
    tolerance: float = Field(default=0.005, gt=0.0, description="Relative error of c*.")

    @field_validator("bracket")
    @classmethod
    def _ordered(cls, bracket: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < bracket[0] < bracket[1]:
            raise ValueError("the bracket must be two rising positive coefficients")
        return bracket


RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{2,63}")


def check_run_id(run_id: str) -> str:
    """The id itself when it is one; `SettingsError` otherwise (no path can pass for an id)."""
    if not RUN_ID.fullmatch(run_id):
        raise SettingsError(f"{run_id!r} is not a run id: copy it from the table of runs.")
    return run_id
