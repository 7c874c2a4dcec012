"""What is measured of a model: which foundations it names and what that is worth, and log-probs of texts."""

from .choice import evaluate, profile, score
from .choosing import Frames, profile_of
from .cloze import LEAST, Calibration, calibrates
from .logp import text_logp
from .questions import answer_ids
from .relevance import relevances

__all__ = [
    "LEAST",
    "Calibration",
    "Frames",
    "answer_ids",
    "calibrates",
    "evaluate",
    "profile",
    "profile_of",
    "relevances",
    "score",
    "text_logp",
]
