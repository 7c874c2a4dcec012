"""The vectors and calibrations of one model, made once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from steer_heal import data, vector
from steer_heal.calibrate import cached
from steer_heal.config import CalibrateSettings, ExtractSettings, build
from steer_heal.models import LanguageModel, band_layers, user
from steer_heal.records import Calibration
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
        self._vectors: dict[str, SteeringVector] = {}
        self._steers: dict[tuple[str, tuple[int, ...]], Steer] = {}

    def ready(self, trait: str, band: tuple[float, float]) -> bool:
        """Whether `steer` has nothing to measure. Raises: `SettingsError` for an empty band."""
        return (trait, band_layers(self._lm.n_layers, band)) in self._steers

    def steer(self, trait: str, band: tuple[float, float]) -> Steer:
        """Vector and c* for the band. Raises: `SettingsError` for an unknown trait or an empty band."""
        return self.at(trait, band_layers(self._lm.n_layers, band))

    def at(self, trait: str, layers: tuple[int, ...]) -> Steer:
        """Vector and c* for these layers."""
        key = (trait, layers)
        if key not in self._steers:
            found, settings = self.vector(trait), build(CalibrateSettings)
            texts = data.contexts(trait)[: settings.n_prompts]
            prompts = [self._lm.encode_chat([user(text)]) for text in texts]
            known = cached(self._cache_dir, self._lm, data.trait(trait), found, layers, prompts, settings)
            self._steers[key] = Steer(found, layers, known)
        return self._steers[key]

    def vector(self, trait: str) -> SteeringVector:
        """The trait's vector at every layer."""
        if trait not in self._vectors:
            self._vectors[trait] = self._load_or_extract(trait)
        return self._vectors[trait]

    def _load_or_extract(self, name: str) -> SteeringVector:
        trait, contexts, settings = data.trait(name), data.contexts(name), build(ExtractSettings)
        parts = [self._lm.fingerprint, trait.positive, trait.negative, contexts, settings.model_dump()]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
        path = self._cache_dir / f"vector-{key}.safetensors"
        if path.exists():
            return vector.load(path)
        found = vector.extract(self._lm, trait, contexts, settings)
        vector.save(found, path)
        return found
