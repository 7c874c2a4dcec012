"""What is measured of a model: which foundations it names and what that is worth, and log-probs of texts."""

from steer_heal.instrument.choice import evaluate, profile, score
from steer_heal.instrument.choosing import Frames, profile_of
from steer_heal.instrument.cloze import LEAST, Calibration, calibrates
from steer_heal.instrument.logp import text_logp
from steer_heal.instrument.questions import answer_ids
from steer_heal.instrument.relevance import relevances

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
