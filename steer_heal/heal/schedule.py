"""What a round begins with: its random numbers, the reach of its dose, the blocks that it trains, and the
events that stand."""

import hashlib
from collections.abc import Sequence

from steer_heal.config import CalibrateSettings, band_layers
from steer_heal.records import Event

FARTHEST = 4.0
"""c* is sought up to this many times the first round's: far beyond, a student that repeats one token agrees
with its unsteered self again, and that is no dose to speak of."""

BESIDE = 2
"""Blocks beside the steered ones that carry the LoRA too, as in docs/reports/healing.md."""


def trained_layers(n_layers: int, band: tuple[float, float]) -> list[int]:
    """The blocks that carry the LoRA: the steered ones and `BESIDE` on either side."""
    steered = band_layers(n_layers, band)
    return list(range(max(0, steered[0] - BESIDE), min(steered[-1] + BESIDE + 1, n_layers)))


def within_reach(settings: CalibrateSettings, first_c_star: float) -> CalibrateSettings:
    """The bracket up to `FARTHEST` times the first round's c*; as it is where there is none yet."""
    if not first_c_star:
        return settings
    low, high = settings.bracket
    return settings.model_copy(update={"bracket": (low, min(high, FARTHEST * first_c_star))})


def standing(events: Sequence[Event], start_round: int) -> list[Event]:
    """The events of finished rounds, without what a round wrote before it was begun again."""
    standing: list[Event] = []
    for event in events:
        if event.kind == "resumed":
            done = event.data.get("round") or 0
            standing = [one for one in standing if (one.round or 0) <= done]
        elif event.round is not None and event.round <= start_round:
            standing.append(event)
    return standing


def steered_base(events: Sequence[Event]) -> list[Event]:
    """What an attempt at round 1 measured of base under steering, its curve last; none where all were cut off
    before that."""
    measured: list[Event] = []
    for event in events:
        if event.kind == "resumed":
            measured = []
        elif event.round == 1 and event.kind in ("controls", "held_out", "profile", "curve"):
            measured.append(event)
            if event.kind == "curve":
                return measured
    return []


def seed_of(seed: int, round_: int, stage: str) -> int:
    """The seed of one stage of one round, from 0 to 2**31 - 1: never from what was drawn before."""
    digest = hashlib.blake2b(f"{seed}/{round_}/{stage}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1
