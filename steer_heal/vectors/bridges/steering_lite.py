"""steering-lite's methods on our residuals, prompts and sliders.

A method that adds a multiple of one direction becomes a `SteeringVector`, run through the coefficient matrix.
Any other becomes a `LiteOperator`, asked one row at a time. Prompts are encoded by us: the template writes
BOS itself, where steering-lite's own loop adds a second one.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from steer_heal.config import LITE_PREFIX as PREFIX
from steer_heal.config import ExtractSettings, SettingsError
from steer_heal.models import LanguageModel, left_pad
from steer_heal.records import Trait
from steer_heal.vectors.bridges import installed
from steer_heal.vectors.rowwise import RowwiseSteering
from steer_heal.vectors.vector import last_residuals, persona_prompts

ADDITIVE = ("mean_diff", "pca")
BRACKET = (0.01, 64.0)
"""Where c* is looked for: coefficients of methods that add no direction are shares or gates."""
TURNS = {"spherical": (0.001, 1.0), "angular_steering": (0.001, math.pi)}
"""The same for those that turn the residual: from nothing to all of the way, and no further round."""
Progress = Callable[[int, int], None]
State = dict[Any, dict[str, Tensor]]


@dataclass(frozen=True)
class LiteOperator:
    """What a method of steering-lite extracted, by layer or by the name of a linear map in a layer."""

    method: str
    state: State
    config: Any
    n_layers: int

    def steering(self, coefficients_BL: Tensor) -> RowwiseSteering:
        return RowwiseSteering(self, coefficients_BL)

    @property
    def bracket(self) -> tuple[float, float]:
        """Between which coefficients c* is looked for."""
        return TURNS.get(self.method, BRACKET)

    @property
    def fingerprint(self) -> str:
        """A hash of the method, the installed version of it and all it extracted."""
        release = installed.release(installed.STEERING_LITE[0])
        digest = hashlib.sha256(f"{release} {self.method}{replace(self.config, coeff=0.0)}".encode())
        for key in sorted(self.state, key=str):
            for part, tensor in sorted(self.state[key].items()):
                digest.update(f"{key}{part}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def modules(self, block: nn.Module, layer: int) -> list[tuple[str, nn.Module]]:
        if layer in self.state:
            return [(str(layer), block)]
        start = f"layers.{layer}."
        names = [key for key in self.state if isinstance(key, str) and key.startswith(start)]
        return [(key, block.get_submodule(key.removeprefix(start))) for key in names]

    def change(self, key: str, module: nn.Module, inputs: Tensor, output: Tensor, strength: float) -> Tensor:
        state = self.state[int(key) if key.isdigit() else key]
        config = replace(self.config, coeff=strength)
        return registry()[self.method].apply(module, inputs, output, state, config)


def available() -> bool:
    return installed.name(installed.STEERING_LITE) is not None


def registry() -> dict[str, Any]:
    """The installed package's methods. Errors: `SettingsError` when it is not installed."""
    return installed.load(installed.STEERING_LITE).REGISTRY


def methods() -> dict[str, str]:
    """Its methods by their name in our chooser, `steering-lite:<name>`, and what a person reads of each; none
    when it is not installed."""
    made = {}
    for name in registry() if available() else ():
        alone = "" if name in ADDITIVE else " (one row at a time)"
        made[f"{PREFIX}{name}"] = f"steering-lite {name.replace('_', ' ')}{alone}"
    return made


def extract(
    lm: LanguageModel,
    trait: Trait,
    contexts: Sequence[str],
    name: str,
    settings: ExtractSettings,
    *,
    progress: Progress | None = None,
) -> LiteOperator:
    """What the method `name` of steering-lite makes of the two personas' residuals at the last prompt token.

    Errors: `SettingsError` for a method it lacks, without contexts, or where it refuses the model.
    """
    known = methods()
    if name not in known:
        raise SettingsError(f"Unknown method {name!r}: choose one of {', '.join(known) or 'our own'}.")
    prompts, own_name = persona_prompts(lm, trait, contexts, settings), name.removeprefix(PREFIX)
    method, config = _method(own_name)
    try:
        if config.target_submodule:
            state = _from_linears(lm, prompts, method, config, settings.batch_size)
        else:
            residuals_NLD = last_residuals(lm, prompts, settings.batch_size, progress).float()
            sides = [
                {layer: half[:, layer] for layer in range(lm.n_layers)}
                for half in residuals_NLD.split(len(prompts) // 2)
            ]
            extra = {"model": lm.model} if getattr(method, "needs_model", False) else {}
            state = method.extract(*sides, config, **extra)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SettingsError(f"steering-lite's {own_name} refuses {lm.name}: {error}.") from error
    return LiteOperator(own_name, state, config, lm.n_layers)


def _method(name: str) -> tuple[Any, Any]:
    """The method and its default config, with the linear maps it works on by default."""
    package = installed.load(installed.STEERING_LITE)
    made = package.SteeringConfig.from_dict({"method": name, "dtype": "float32"})
    method = package.REGISTRY[name]
    return method, replace(made, target_submodule=getattr(method, "default_target_submodule", None))


def _from_linears(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], method: Any, config: Any, batch_size: int
) -> State:
    """A method on the outputs of linear maps: recorded by steering-lite, on our token ids."""
    target = installed.load(["steering_lite.target"])
    record = installed.load(["steering_lite.extract_linear"]).record_linear_outputs
    named = {name: module for name, module, _ in target.find_targets(lm.model, config)}
    half = len(prompts) // 2
    sides = [
        record(lm.model, _Ready(lm), rows, named, batch_size=batch_size)
        for rows in (prompts[:half], prompts[half:])
    ]
    sides = [{name: tensor.float() for name, tensor in side.items()} for side in sides]
    return method.extract(*sides, config, name_to_module=named)


class _Ready:
    """Stands where a tokenizer is expected, for prompts that are token ids already."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def __call__(self, prompts: Sequence[Sequence[int]], **_: Any) -> BatchEncoding:
        return BatchEncoding(left_pad(prompts, self._lm.pad_id, self._lm.device).inputs)


def directions(operator: LiteOperator) -> Tensor:
    """(L, D) float32 of a method of `ADDITIVE`."""
    return torch.stack([operator.state[layer]["v"].float().cpu() for layer in range(operator.n_layers)])
