"""Measures what ships with the project: `python -m benchmarks.measured`, by `make measured`.

On smollm2 the default trait's vector, how neutral text lies along it, its c* and those of random directions
at the default layers, and what each frame is worth on base, in both number formats that a CPU loads it in.
They are read for as long as nothing that decides them has changed (tests/real says when they are stale);
then this makes them anew.
"""

import shutil
import tempfile
from pathlib import Path

from steer_heal import data
from steer_heal.config import AUTO, DEFAULT_BAND, DEFAULT_TRAIT, SMOLLM2, DoseRequest
from steer_heal.engine.vectors import Vectors
from steer_heal.evaluate.frames import Frames
from steer_heal.models import load


def main() -> None:
    target = data.FOLDER / "measured"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as made:
        for dtype in ("float32", "bfloat16"):
            lm = load(SMOLLM2, dtype=dtype)
            vectors = Vectors(lm, Path(made))
            steer = vectors.steer(DEFAULT_TRAIT, DEFAULT_BAND)
            vectors.probe(DEFAULT_TRAIT, AUTO, steer.layers)
            vectors.random(DEFAULT_TRAIT, steer.layers, DoseRequest().controls)
            best = Frames(lm, Path(made)).of()
            print(
                f"{dtype}: c* {steer.calibration.c_star:.4g}, frame {best.frame}, {best.agreement}",
                flush=True,
            )
        shutil.copytree(made, target)


if __name__ == "__main__":
    main()
