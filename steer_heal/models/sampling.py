"""What a model's files say of its answers: how they are drawn and where they end; `read` reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from steer_heal.config import SampleSettings, SettingsError, build
from steer_heal.records import SamplingDefaults

FILE = "generation_config.json"
KNOWN: dict[str, SamplingDefaults] = {
    "gemma3": SamplingDefaults(1.0, 64, 0.95),
    "gemma-3": SamplingDefaults(1.0, 64, 0.95),
    "qwen2": SamplingDefaults(0.7, 20, 0.8),
    "qwen3": SamplingDefaults(0.6, 20, 0.95),
    "smollm2": SamplingDefaults(0.7, 0, 0.9),
    "smollm3": SamplingDefaults(0.6, 0, 0.95),
}
"""By a part of a model's own name or its architecture's: how it is meant to be sampled."""
_DRAWN = ("temperature", "top_k", "top_p")
_NO_FILTER = {"top_k": 0, "top_p": 1.0}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False, "none": None}


@dataclass(frozen=True, slots=True)
class Answers:
    """How a model's answers are drawn unless a request says otherwise, and the tokens that end one."""

    sampling: SamplingDefaults
    eos_ids: tuple[int, ...] = ()


def of_files(
    name: str, folder: str | Path, config: PreTrainedConfig
) -> tuple[Answers | None, GenerationConfig | None]:
    """What the generation config in `folder` says, and that config itself where transformers would stumble
    over numbers that it holds as strings. Both none without the file. Errors: `SettingsError`."""
    try:
        said = json.loads((Path(folder) / FILE).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{FILE} of {name} cannot be read ({error}): write JSON, or remove it."
        ) from error
    if not isinstance(said, dict):
        raise SettingsError(f"{FILE} of {name} holds no settings: write a JSON object, or remove it.")
    answers = read(said, f"{FILE} of {name}", known(name, config))
    return answers, _plain(said, answers.sampling)


def of_transformers(name: str, model: PreTrainedModel) -> Answers:
    """The same of what is set in the model's generation config. Errors: `SettingsError`."""
    held = vars(model.generation_config) if model.generation_config else {}
    said = {key: value for key, value in held.items() if value is not None}
    return read(
        said, f"The generation config of {name}", known(name, model.config.get_text_config(decoder=True))
    )


def known(name: str, config: PreTrainedConfig) -> SamplingDefaults:
    """How the model is sampled where its files are silent."""
    called = f"{Path(name).name} {config.model_type}".lower()
    return next((found for part, found in KNOWN.items() if part in called), SamplingDefaults())


def read(said: Mapping[str, Any], where: str, silent: SamplingDefaults) -> Answers:
    """What `said`, the contents of a generation config, means; what it does not mention is as in `silent`.

    Temperature 0 or "do_sample": false is greedy; a top_k of 0, -1 or null and a top_p of null filter
    nothing; numbers may be strings. Errors: `SettingsError`, with `where` it stands.
    """
    found = {name: said[name] for name in _DRAWN if name in said}
    ends = said.get("eos_token_id")
    try:
        values: dict[str, Any] = build(SampleSettings, **found).model_dump(include=set(found))
        greedy = _truth(said.get("do_sample")) is False
        eos_ids = [_token(one) for one in (ends if isinstance(ends, list) else [ends]) if one is not None]
    except SettingsError as error:
        raise SettingsError(f"{where} cannot be used: {error}") from error
    meant = {"temperature": silent.temperature, **_NO_FILTER}
    values = {name: meant[name] if value is None else value for name, value in values.items()}
    sampling = replace(silent, **values | ({"temperature": 0.0} if greedy else {}))
    return Answers(sampling, tuple(token for token in eos_ids if token >= 0))


def _plain(said: dict[str, Any], meant: SamplingDefaults) -> GenerationConfig | None:
    plain = {name: _number(value) for name, value in said.items() if name != "transformers_version"}
    if all(plain[name] == said[name] for name in plain):
        return None
    values = {name: getattr(meant, name) for name in _DRAWN if meant.temperature}
    rest = {name: value for name, value in plain.items() if name not in (*_DRAWN, "do_sample")}
    return GenerationConfig(**rest, **values, do_sample=bool(values))


def _number(value: Any) -> Any:
    """The number that a string is, and those in a list; anything else as it is."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    for kind in (int, float) if isinstance(value, str) else ():
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _truth(value: Any) -> bool | None:
    name = str(value).strip().lower()
    if name not in _TRUTHS:
        raise SettingsError(f"do_sample must be true or false, not {value!r}.")
    return _TRUTHS[name]


def _token(value: Any) -> int:
    number = _number(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not float(number).is_integer():
        raise SettingsError(f"eos_token_id must be the number of a token, or a list of some, not {value!r}.")
    return int(number)
