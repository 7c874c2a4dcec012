"""The whole algorithm; yields events, knows no store."""

from .algorithm import STAGES, run
from .seeds import seed_of

__all__ = ["STAGES", "run", "seed_of"]
