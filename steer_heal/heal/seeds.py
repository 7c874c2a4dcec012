"""Where random numbers come from: the run's seed, the round and the stage, never from history."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, round_: int, stage: str) -> int:
    """The seed of one stage of one round, from 0 to 2**31 - 1."""
    digest = hashlib.blake2b(f"{seed}/{round_}/{stage}".encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1
