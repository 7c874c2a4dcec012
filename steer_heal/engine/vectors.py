"""The vectors and calibrations of one model, made once and kept on disk."""

import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from steer_heal import data
from steer_heal.config import (
    AUTO,
    EVERYWHERE,
    MAX_ALPHA,
    CalibrateSettings,
    DoseRequest,
    ExtractSettings,
    Mix,
    SettingsError,
    SteerRequest,
    build,
    decided_method,
    read_mix,
)
from steer_heal.data import measurements
from steer_heal.dose import controls
from steer_heal.dose.calibrate import cached, kls
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.dose.mixed import MixedVector, Steered, mixed
from steer_heal.models import LanguageModel, band_layers, digest, user
from steer_heal.records import MeasuredDose, Trait
from steer_heal.vectors import probe, vector
from steer_heal.vectors.bridges.extraction import extract, version
from steer_heal.vectors.bridges.steering_lite import LiteOperator
from steer_heal.vectors.probe import Neutral, Probe
from steer_heal.vectors.vector import SteeringVector

Say = Callable[[str], None]
Of = tuple[str, tuple[float, float], str]
"""Trait, band and method: what a vector and its c* are of."""
MIXES = 64
"""So many are remembered, with the KL that was measured of each."""


def _nothing(_text: str) -> None:
    """Who does not listen."""


class Vectors:
    """Extracts and calibrates on first use; kept in memory and on disk, and used for as long as nothing has
    changed that decides the result: the model, the trait's texts, contexts, method, settings, our version of
    it."""

    def __init__(self, lm: LanguageModel, cache_dir: Path) -> None:
        self._lm, self._cache_dir = lm, cache_dir
        self._residuals: tuple[object, Tensor] | None = None
        self._vectors: dict[tuple[str, str], tuple[str, SteeringVector]] = {}
        self._steers: dict[tuple[str, tuple[int, ...], str], CalibratedVector] = {}
        self._mixes: OrderedDict[Hashable, tuple[list[CalibratedVector], MixedVector]] = OrderedDict()

    def ready(self, trait: str, band: tuple[float, float], method: str = AUTO) -> bool:
        """Whether `steer` has nothing to measure. Raises: `SettingsError` for an empty band."""
        return (trait, band_layers(self._lm.n_layers, band), self.method(method, trait)) in self._steers

    def method(self, name: str, trait: str) -> str:
        """The method that is meant on this model for this trait."""
        return decided_method(name, self._lm.name, replies=data.trait(trait).by_replies)

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

    def of(self, asked: SteerRequest | DoseRequest, *, say: Say = _nothing) -> Steered:
        """What alpha is a dose of in the request: a mix where it says one, else its trait's vector."""
        return self.of_layers(asked, band_layers(self._lm.n_layers, asked.band), say=say)

    def of_layers(
        self, asked: SteerRequest | DoseRequest, layers: tuple[int, ...], *, say: Say = _nothing
    ) -> Steered:
        """The same on other layers than the request's."""
        if not asked.mix:
            return self.at(asked.trait, layers, asked.method, say=say)
        mix = self.mix(asked.mix)
        parts = {name: self.at(name, layers, asked.method, say=say) for name in mix.traits}
        key, made = (str(mix), layers, asked.method), list(parts.values())
        known = self._mixes.pop(key, None)
        same = known is not None and all(map(operator.is_, known[0], made))
        self._mixes[key] = known if known is not None and same else (made, mixed(mix, parts))
        while len(self._mixes) > MIXES:
            self._mixes.popitem(last=False)
        return self._mixes[key][1]

    def own(self, asked: DoseRequest, *, say: Say = _nothing) -> CalibratedVector | None:
        """What the request adds, as one vector with its own c*; None for a mix that ablates."""
        steered = self.of(asked, say=say)
        if isinstance(steered, CalibratedVector):
            return steered
        one = steered.one
        return one and self.calibrated(data.trait(asked.trait), one, steered.layers, say=say)

    def one_nat(self, asked: DoseRequest, *, say: Say = _nothing) -> float | None:
        """The alpha at which the request costs what c* stands for: 1 of a vector. None of a mix that ablates,
        or of which no dose costs that."""
        steered = self.of(asked, say=say)
        if isinstance(steered, CalibratedVector):
            return 1.0
        own = self.own(asked, say=say)
        if own is None or not own.calibration.reached or own.c_star > MAX_ALPHA * steered.added:
            return None
        return round(own.c_star / steered.added, 3)

    def kl(self, asked: SteerRequest, *, say: Say = _nothing) -> MeasuredDose:
        """What the request's own dose, mix and gate cost, on the prompts that c* is found on; and of a mix
        whether any dose of it reaches the KL that c* stands for."""
        steered, settings = self.of(asked, say=say), build(CalibrateSettings)
        mix = steered if isinstance(steered, MixedVector) and asked.gate == EVERYWHERE else None
        known = {} if mix is None else mix.swept
        alphas = [asked.alpha] if mix is None or MAX_ALPHA in known else [asked.alpha, MAX_ALPHA]
        alphas = [alpha for alpha in alphas if alpha not in known]
        found = kls(
            self._lm, steered.steers, list(steered.coefficients_RL(*alphas)) if alphas else [],
            self._prompts(asked.trait, settings), settings, where=asked.gate,
            pause=lambda: say("Measuring the KL of this dose"),
        )  # fmt: skip
        known |= dict(zip(alphas, found, strict=True))
        most = known.get(MAX_ALPHA, math.inf)
        message = "" if most >= settings.target_kl else (
            f"This mix never reaches {settings.target_kl:g} nat: even at alpha {MAX_ALPHA:g} its KL is "
            f"{most:.2g} nats; choose other doses or traits."
        )  # fmt: skip
        return MeasuredDose(known[asked.alpha], message)

    def probe(self, trait: str, method: str, layers: Sequence[int]) -> Probe | None:
        """What shows how much of the trait is in a residual; none for a method without a direction."""
        found = self.vector(trait, method)
        if found.operator is not None:
            return None
        return Probe(
            found.directions_LD, self._along(found, self.key(trait, self.method(method, trait))), layers
        )

    def _along(self, found: SteeringVector, key: str) -> Neutral:
        """Neutral text along the vector of this key; kept, as the vector is."""
        texts = self._lm.material.neutral_prompts()
        file = f"neutral-{digest(probe.VERSION, key, texts)}.json"
        known = measurements.read(self._cache_dir, file, "neutral", Neutral)
        if known is not None:
            return known
        if self._residuals is None or self._residuals[0] != self._lm.state:
            self._residuals = self._lm.state, probe.text_residuals(self._lm, texts)
        made = probe.neutral(found.directions_LD, self._residuals[1])
        measurements.write(self._cache_dir, file, {"model": self._lm.name, "neutral": asdict(made)})
        return made

    def mix(self, text: str) -> Mix:
        """What the expression says. Raises: `SettingsError`, also for a trait that there is none of."""
        return read_mix(text, data.traits())

    def needed(self, asked: SteerRequest) -> list[Of]:
        """What has to be measured for the request."""
        added = self.mix(asked.mix).traits if asked.mix else (asked.trait,)
        traits = dict.fromkeys((*added, asked.trait) if asked.carried else added)
        return [(trait, asked.band, asked.method) for trait in traits]

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
        texts = data.trait(trait).decides(), self._lm.material.contexts(trait)
        return digest(version(method), self._lm.fingerprint, *texts, settings)

    def _load_or_extract(self, name: str, method: str, key: str, say: Say) -> SteeringVector:
        """One that lies there damaged is extracted again."""
        file = f"vector-{key}.safetensors"
        with suppress(SettingsError):
            found = vector.load(measurements.find(self._cache_dir, file))
            return replace(found, meta=found.meta | {"model": self._lm.name})
        trait, contexts = data.trait(name), self._lm.material.contexts(name)
        settings = build(ExtractSettings, method=method)
        about = f"Measuring the direction of {trait.title}"
        say(about)
        found = extract(
            self._lm, trait, contexts, settings,
            progress=lambda done, of: say(f"{about}, {done} of {of} prompts"),
        )  # fmt: skip
        if found.operator is None:
            vector.save(found, self._cache_dir / file)
        return found
