"""The vectors and calibrations of one model, made once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from steer_heal import data
from steer_heal.config import AUTO, CalibrateSettings, ExtractSettings, SettingsError, build, decided_method
from steer_heal.data import measurements
from steer_heal.dose import controls
from steer_heal.dose.calibrate import cached
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.models import LanguageModel, band_layers, digest, user
from steer_heal.records import Trait
from steer_heal.vectors import vector
from steer_heal.vectors.bridges.extraction import extract, version
from steer_heal.vectors.bridges.steering_lite import LiteOperator
from steer_heal.vectors.vector import SteeringVector

Say = Callable[[str], None]


def _nothing(_text: str) -> None:
    """Who does not listen."""


class Vectors:
    """Extracts and calibrates on first use; kept in memory and on disk, and used for as long as nothing has
    changed that decides the result: the model, the trait's texts, contexts, method, settings, our version of
    it."""

    def __init__(self, lm: LanguageModel, cache_dir: Path) -> None:
        self._lm, self._cache_dir = lm, cache_dir
        self._vectors: dict[tuple[str, str], tuple[str, SteeringVector]] = {}
        self._steers: dict[tuple[str, tuple[int, ...], str], CalibratedVector] = {}

    def ready(self, trait: str, band: tuple[float, float], method: str = AUTO) -> bool:
        """Whether `steer` has nothing to measure. Raises: `SettingsError` for an empty band."""
        return (trait, band_layers(self._lm.n_layers, band), self.method(method, trait)) in self._steers

    def method(self, name: str, trait: str) -> str:
        """The method that is meant on this model for this trait."""
        return decided_method(name, self._lm.name, replies=bool(data.trait(trait).replies))

    def steer(
        self,
        trait: str,
        band: tuple[float, float],
        method: str = AUTO,
        *,
        say: Say = _nothing,
    ) -> CalibratedVector:
        """Vector and c* for the band. Raises: `SettingsError` for an unknown trait or an empty band."""
        return self.at(trait, band_layers(self._lm.n_layers, band), method, say=say)

    def at(
        self,
        trait: str,
        layers: tuple[int, ...],
        method: str = AUTO,
        *,
        say: Say = _nothing,
    ) -> CalibratedVector:
        """Vector and c* for these layers; `say` hears before every pass of the model what is measured, and
        ends it by raising."""
        method = self.method(method, trait)
        key, found = (trait, layers, method), self.vector(trait, method, say=say)
        if key not in self._steers:
            self._steers[key] = self.calibrated(data.trait(trait), found, layers, say=say)
        return self._steers[key]

    def calibrated(
        self,
        trait: Trait,
        found: SteeringVector,
        layers: tuple[int, ...],
        *,
        say: Say = _nothing,
    ) -> CalibratedVector:
        """Any vector with its c* for these layers. Raises: `SettingsError` when it has no direction there."""
        absent = [layer for layer in layers if not found.directions_LD[layer].any()]
        if found.operator is None and absent:
            held = found.meta.get("layers", "others")
            raise SettingsError(
                f"The vector has no direction at layer {absent[0]}: choose a band within its layers ({held})."
            )
        bracket = {"bracket": found.operator.bracket} if isinstance(found.operator, LiteOperator) else {}
        settings = build(CalibrateSettings, **bracket)
        prompts = self._prompts(trait.name, settings)
        passes = ""

        def progress(number: int, of: int) -> None:
            nonlocal passes
            passes = f", pass {number} of about {of}"

        known = cached(
            self._cache_dir, self._lm, trait, found, layers, prompts, settings,
            progress=progress, pause=lambda: say(f"Measuring c* of {trait.title}{passes}"),
        )  # fmt: skip
        return CalibratedVector(found, layers, known)

    def random(
        self, trait: str, layers: tuple[int, ...], n: int, *, say: Say = _nothing
    ) -> tuple[float, ...]:
        """c* of `n` random directions for these layers, on the prompts that the trait's is found on."""
        settings = build(CalibrateSettings)
        return controls.c_stars(
            self._cache_dir, self._lm, layers, self._prompts(trait, settings), settings, n,
            pause=lambda: say(f"Measuring c* of {n} random directions"),
        )  # fmt: skip

    def _prompts(self, trait: str, settings: CalibrateSettings) -> list[list[int]]:
        texts = self._lm.material.contexts(trait)[: settings.n_prompts]
        return [self._lm.encode_chat([user(text)]) for text in texts]

    def extracted(self, trait: str, method: str = AUTO) -> bool:
        """Whether `vector` has nothing to measure."""
        return (trait, self.method(method, trait)) in self._vectors

    def vector(self, trait: str, method: str = AUTO, *, say: Say = _nothing) -> SteeringVector:
        """The trait's vector at every layer."""
        method = self.method(method, trait)
        of, key = (trait, method), self.key(trait, method)
        if self._vectors.get(of, ("",))[0] != key:
            self._steers = {at: known for at, known in self._steers.items() if (at[0], at[2]) != of}
            self._vectors[of] = key, self._load_or_extract(trait, method, key, say)
        return self._vectors[of][1]

    def key(self, trait: str, method: str) -> str:
        """Of all that decides the trait's vector. Raises: `SettingsError` for an unknown trait or method."""
        settings = build(ExtractSettings, method=method).model_dump()
        texts = asdict(data.trait(trait)), self._lm.material.contexts(trait)
        return digest(version(method), self._lm.fingerprint, *texts, settings)

    def _load_or_extract(self, name: str, method: str, key: str, say: Say) -> SteeringVector:
        """One that lies there damaged is extracted again."""
        file = f"vector-{key}.safetensors"
        with suppress(SettingsError):
            found = vector.load(measurements.find(self._cache_dir, file))
            return replace(found, meta=found.meta | {"model": self._lm.name})
        trait, contexts, settings = (
            data.trait(name),
            self._lm.material.contexts(name),
            build(ExtractSettings, method=method),
        )
        about = f"Measuring the direction of {trait.title}"
        say(about)
        found = extract(
            self._lm, trait, contexts, settings,
            progress=lambda done, of: say(f"{about}, {done} of {of} prompts"),
        )  # fmt: skip
        if found.operator is None:
            vector.save(found, self._cache_dir / file)
        return found
