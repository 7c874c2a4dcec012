"""What was measured beside random directions, kept for who is about to heal it."""

from dataclasses import asdict, replace

from steer_heal import data
from steer_heal.config import EVERYWHERE, DoseRequest, HealSettings, decided_method, read_mix
from steer_heal.models import band_layers, digest
from steer_heal.records import Controls, Effect, ModelInfo, Sweep

LEAST_VIGNETTES = 7
"""One of each foundation: of fewer nothing is concluded."""


class BesideRandom:
    """The newest controls of each vector of one model, from sweeps and effects."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self._known: dict[str, tuple[Controls, float, int]] = {}

    def note(self, asked: DoseRequest, found: Effect | Sweep | str) -> None:
        """Keeps what was found, where it is an end result that has controls."""
        if isinstance(found, Effect):
            controls, n_vignettes = found.controls, found.n_vignettes
        elif isinstance(found, Sweep) and found.rows and found.rows[0].profile is not None:
            controls, n_vignettes = found.controls, found.rows[0].profile.n_vignettes
        else:
            return
        if controls is None or found.movement is None or n_vignettes < LEAST_VIGNETTES:
            return
        key = self._key(asked.trait, asked.mix, asked.band, asked.method)
        self._known[key] = controls, found.movement, n_vignettes

    def doubt(self, settings: HealSettings) -> str:
        """That random directions among those which the run would measure were found to move the trait as far,
        in a clause; nothing where they did not, or where nothing is known of the vector."""
        key = self._key(settings.trait, settings.mix, settings.band, settings.extract.method)
        if settings.model != self._model.name or key not in self._known:
            return ""
        controls, movement, n_vignettes = self._known[key]
        controls = replace(controls, random=controls.random[: settings.evaluate.controls])
        as_far = controls.as_far(data.trait(settings.trait).target, movement)
        if not as_far:
            return ""
        return (
            f"this vector was measured to be no better than random: at the dose of one nat it moves "
            f"{settings.trait} by {movement:+.3f}, and {as_far} of {len(controls.random)} random directions "
            f"of the same KL move it as far, over {n_vignettes} vignettes"
        )

    def _key(self, trait: str, mix: str, band: tuple[float, float], method: str) -> str:
        """Of all that decides the vector, which tokens of an answer are steered not among it."""
        added = replace(read_mix(mix), where=EVERYWHERE) if mix else None
        traits = [data.trait(name) for name in sorted({trait, *(added.traits if added else ())})]
        methods = [decided_method(method, self._model.name, replies=one.by_replies) for one in traits]
        layers = band_layers(self._model.n_layers, band)
        return digest(trait, str(added), layers, methods, [asdict(one) for one in traits])
