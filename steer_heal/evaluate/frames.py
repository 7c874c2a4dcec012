"""How a model is asked: in the frame in which its base agrees best with the labels; remembered on disk."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from steer_heal import data
from steer_heal.config import AUTO_FRAME
from steer_heal.data import measurements
from steer_heal.evaluate.choice import evaluate
from steer_heal.evaluate.cloze import LEAST, Calibration, calibrates
from steer_heal.models import LanguageModel, digest
from steer_heal.records import Profile, Vignette

CANDIDATES = ("choice", "cloze")
"""The first of them where they agree alike."""
_VERSION = 1
"""To be raised with every change of what `evaluate` gives."""

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


class Frames:
    """What each frame is worth on one model: its base's profile on some of our vignettes, measured on first
    use; kept in memory and, where there is a folder, as JSON under all that decides it."""

    def __init__(self, lm: LanguageModel, cache_dir: Path | None = None) -> None:
        self._lm, self._cache_dir = lm, cache_dir
        self._known: dict[data.AnyFrame, Profile] = {}

    def ready(self, name: str = AUTO_FRAME) -> bool:
        """Whether `of` has nothing to measure."""
        return all(data.frame(one) in self._known for one in _wanted(name))

    def of(
        self, name: str = AUTO_FRAME, *, progress: Progress | None = None, stop: Stop | None = None
    ) -> Profile:
        """The base's profile in the frame, or in the one that suits the model; without single vignettes.

        The model is to be the base as it is called. Errors: `SettingsError` for an unknown frame or a folder
        that cannot be written; `Stopped` when `stop()` says so.
        """
        return choose([self._one(one, progress, stop) for one in _wanted(name)])

    def calibration(
        self,
        name: str,
        vignettes: Sequence[Vignette],
        *,
        progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> Calibration:
        """What profiles of these vignettes are calibrated by: ours, where theirs would be no good; else none
        yet, which `evaluate` then takes from them. Errors as `of`."""
        if isinstance(data.frame(name), data.Frame) or calibrates(vignettes):
            return ()
        return self.of(name, progress=progress, stop=stop).calibration

    def _one(self, name: str, progress: Progress | None, stop: Stop | None) -> Profile:
        frame = data.frame(name)  # a trait's own axis has another once its poles are others
        if frame not in self._known:
            vignettes = self._lm.material.vignettes(condition=data.CONDITION, limit=LEAST)
            file = self._file(frame, vignettes)
            found = measurements.read(self._cache_dir, file, "profile", Profile)
            if found is None:
                whole = evaluate(self._lm, vignettes, frame, progress=progress, stop=stop)[0]
                found = replace(whole, per_vignette=())
                document = {"model": self._lm.name, "profile": asdict(found)}
                measurements.write(self._cache_dir, file, document)
            self._known[frame] = found
        return self._known[frame]

    def _file(self, frame: data.AnyFrame, vignettes: Sequence[Vignette]) -> str:
        parts = asdict(frame), [asdict(row) for row in vignettes]
        return f"frame-{digest(_VERSION, self._lm.fingerprint, *parts)}.json"


def choose(found: Sequence[Profile]) -> Profile:
    """The profile that agrees best; one above chance before all that are not."""
    return max(found, key=lambda one: (not one.agreement.cannot_answer, one.agreement.value or 0.0))


def _wanted(name: str) -> tuple[str, ...]:
    return CANDIDATES if name == AUTO_FRAME else (name,)
