"""The vectors and calibrations of one model, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal import data, vector
from steer_heal.bridges.extraction import extract
from steer_heal.bridges.steering_lite import LiteOperator
from steer_heal.calibrate import cached
from steer_heal.config import AUTO, CalibrateSettings, ExtractSettings, SettingsError, build, decided_method
from steer_heal.models import LanguageModel, band_layers, user
from steer_heal.records import Calibration, Trait
from steer_heal.steering import coefficients
from steer_heal.vector import SteeringVector


@dataclass(frozen=True)
class Steer:
    """A trait at a band of one model, ready to be dosed in units of c*."""

    vector: SteeringVector
    layers: tuple[int, ...]
    calibration: Calibration

    def coefficients_KL(self, *alphas: float) -> torch.Tensor:
        """The coefficients of each alpha: alpha * c* on the band's layers."""
        c_star, n_layers = self.calibration.c_star, self.vector.n_layers
        return torch.cat([coefficients(n_layers, self.layers, alpha * c_star) for alpha in alphas])

    def nats(self, alpha: float) -> float:
        """About what alpha costs in KL(steered || base) at the 95th percentile: it grows as alpha squared."""
        return alpha**2 * self.calibration.kl_p95

    def fraction(self, alpha: float) -> float | None:
        """What is added at each layer as a fraction of the residual's length."""
        norm = self.calibration.residual_norm
        return abs(alpha) * self.calibration.c_star / norm if norm else None


class Vectors:
    """Extracts and calibrates on first use; kept in memory and, keyed by all that matters, on disk."""

    def __init__(self, lm: LanguageModel, cache_dir: Path) -> None:
        self._lm, self._cache_dir = lm, cache_dir
        self._vectors: dict[tuple[str, str], SteeringVector] = {}
        self._steers: dict[tuple[str, tuple[int, ...], str], Steer] = {}

    def ready(self, trait: str, band: tuple[float, float], method: str = AUTO) -> bool:
        """Whether `steer` has nothing to measure. Raises: `SettingsError` for an empty band."""
        return (trait, band_layers(self._lm.n_layers, band), self.method(method)) in self._steers

    def method(self, name: str) -> str:
        """The method that is meant on this model."""
        return decided_method(name, self._lm.name)

    def steer(
        self,
        trait: str,
        band: tuple[float, float],
        method: str = AUTO,
        *,
        pause: Callable[[], None] | None = None,
    ) -> Steer:
        """Vector and c* for the band. Raises: `SettingsError` for an unknown trait or an empty band."""
        return self.at(trait, band_layers(self._lm.n_layers, band), method, pause=pause)

    def at(
        self,
        trait: str,
        layers: tuple[int, ...],
        method: str = AUTO,
        *,
        pause: Callable[[], None] | None = None,
    ) -> Steer:
        """Vector and c* for these layers; `pause` is called between the passes of a measurement."""
        key = (trait, layers, self.method(method))
        if key not in self._steers:
            found = self.vector(trait, method)
            self._steers[key] = self.calibrated(data.trait(trait), found, layers, pause=pause)
        return self._steers[key]

    def calibrated(
        self,
        trait: Trait,
        found: SteeringVector,
        layers: tuple[int, ...],
        *,
        pause: Callable[[], None] | None = None,
    ) -> Steer:
        """Any vector with its c* for these layers. Raises: `SettingsError` when it has no direction there."""
        absent = [layer for layer in layers if not found.directions_LD[layer].any()]
        if found.operator is None and absent:
            held = found.meta.get("layers", "others")
            raise SettingsError(
                f"The vector has no direction at layer {absent[0]}: choose a band within its layers ({held})."
            )
        bracket = {"bracket": found.operator.bracket} if isinstance(found.operator, LiteOperator) else {}
        settings = build(CalibrateSettings, **bracket)
        texts = self._lm.material.contexts(trait.name)[: settings.n_prompts]
        prompts = [self._lm.encode_chat([user(text)]) for text in texts]
        known = cached(
            self._cache_dir, self._lm, trait, found, layers, prompts, settings,
            progress=None if pause is None else lambda _done, _of: pause(),
        )  # fmt: skip
        return Steer(found, layers, known)

    def vector(self, trait: str, method: str = AUTO) -> SteeringVector:
        """The trait's vector at every layer."""
        method = self.method(method)
        if (trait, method) not in self._vectors:
            self._vectors[trait, method] = self._load_or_extract(trait, method)
        return self._vectors[trait, method]

    def _load_or_extract(self, name: str, method: str) -> SteeringVector:
        trait, contexts, settings = (
            data.trait(name),
            self._lm.material.contexts(name),
            build(ExtractSettings, method=method),
        )
        texts = [trait.positive, trait.negative, trait.scenes, trait.replies, contexts]
        parts = [self._lm.fingerprint, *texts, settings.model_dump()]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
        path = self._cache_dir / f"vector-{key}.safetensors"
        if path.exists():
            return vector.load(path)
        found = extract(self._lm, trait, contexts, settings)
        if found.operator is None:
            vector.save(found, path)
        return found
