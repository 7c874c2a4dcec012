"""What is measured of a model: the forced choice and its profile, and log-probs of texts."""

from .choice import evaluate, profile, score, trait_shift
from .logp import text_logp
from .questions import answer_ids

__all__ = ["answer_ids", "evaluate", "profile", "score", "text_logp", "trait_shift"]
