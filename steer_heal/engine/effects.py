"""What a vector does, measured in slices and kept."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from steer_heal import data
from steer_heal.config import DoseRequest, SettingsError
from steer_heal.data import measurements
from steer_heal.dose import controls, effect
from steer_heal.dose.calibrated import CalibratedVector
from steer_heal.engine.preemptible import while_wanted
from steer_heal.engine.requests import Request
from steer_heal.engine.sweeps import ending
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate.cloze import LEAST
from steer_heal.evaluate.frames import Frames
from steer_heal.models import LanguageModel, digest
from steer_heal.records import Effect, Profile, Stopped, Trait, Vignette


class Effects:
    """What vectors do on one model, over our own vignettes; kept in the folder under all that decides it."""

    def __init__(self, lm: LanguageModel, vectors: Vectors, frames: Frames, cache_dir: Path) -> None:
        self._lm, self._vectors, self._frames, self._cache_dir = lm, vectors, frames, cache_dir

    def effect(
        self, asked: DoseRequest, request: Request[Effect | str | None]
    ) -> Iterator[Effect | str | None]:
        """What is being measured, in words; None after each slice in between; last the effect.

        Of what is asked its trait, mix, band, method, frame and number of controls count.
        """

        def work(stop: Callable[[], bool]) -> Iterator[Effect | str]:
            say = ending(stop)
            yield "the direction and its c*"
            steer = self._vectors.own(asked, say=say)
            if steer is None:
                raise SettingsError("What a mix ablates has no dose of its own: leave ablate out of the mix.")
            yield "which question suits the model"
            trait = data.trait(asked.trait)
            reading = self._frames.of(data.frame_of(trait, asked.frame), stop=stop)
            n, vignettes = asked.controls, self._lm.material.vignettes(condition=data.CONDITION, limit=LEAST)
            file = f"effect-{self._key(trait, steer, reading, vignettes, n)}.json"
            found = measurements.read(self._cache_dir, file, "effect", Effect)
            if found is None:
                yield f"c* of {n} random directions"
                c_stars = self._vectors.random(asked.trait, steer.layers, n, say=say) if n else ()
                yield f"{len(vignettes)} vignettes: base, steered, random directions and the persona"
                found = effect.measure(self._lm, trait, steer, vignettes, reading, c_stars, stop=stop)
                measurements.write(self._cache_dir, file, {"model": self._lm.name, "effect": asdict(found)})
            yield found

        try:
            yield from while_wanted(request, work)
        except Stopped:
            return

    def _key(
        self,
        trait: Trait,
        steer: CalibratedVector,
        reading: Profile,
        vignettes: list[Vignette],
        n_controls: int,
    ) -> str:
        directions = steer.vector.directions_LD.contiguous().numpy().tobytes()
        return digest(
            effect.VERSION, controls.VERSION, self._lm.fingerprint, asdict(trait), steer.layers,
            steer.calibration.c_star, hashlib.sha256(directions).hexdigest(),
            asdict(data.frame(reading.frame)), reading.calibration, [asdict(row) for row in vignettes],
            self._lm.material.fixed_prompts(), n_controls,
        )  # fmt: skip
