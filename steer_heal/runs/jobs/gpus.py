"""Which of a machine's GPUs a run gets, where several go at a time. Pure but for `visible`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

ALLOWED = "CUDA_VISIBLE_DEVICES"
ALL = "STEER_HEAL_GPUS"
"""Environment variable by which a worker, which sees only its own, tells the next one of all of them."""
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def visible(environment: Mapping[str, str] = os.environ, devices: Path = _NVIDIA) -> list[str]:
    """The GPUs that runs may have, as `CUDA_VISIBLE_DEVICES` names them: those that it names, up to the first
    that is none, else all of the machine's."""
    said = environment.get(ALL, environment.get(ALLOWED))
    if said is None:
        return [str(number) for number in range(len(list(devices.iterdir())))] if devices.is_dir() else []
    names = [name.strip() for name in said.split(",")]
    ends = [place for place, name in enumerate(names) if not name or name.startswith("-")]
    return names[: min(ends, default=len(names))]


def share(gpus: Sequence[str], taken: Sequence[str], at_once: int) -> list[str]:
    """The GPUs of the next of `at_once` runs: as many as fall to each, those that fewest runs have (`taken`:
    the GPUs of those that go), in their order. Where there are fewer GPUs than runs that were asked for at a
    time, runs share them."""
    n = max(1, len(gpus) // max(1, at_once))
    chosen = sorted(gpus, key=list(taken).count)[:n]
    return [gpu for gpu in gpus if gpu in chosen]


def environment(gpus: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """What a worker that is given these of all GPUs learns of them; nothing where there are none."""
    return {ALLOWED: ",".join(given), ALL: ",".join(gpus)} if given else {}
