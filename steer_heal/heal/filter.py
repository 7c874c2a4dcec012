"""Which of a round's answers read well: their readings, the cuts, and what is left.

Every reading is kept beside the verdict, and every cut that an answer fails is named, so that a starved round
can say which cut ate its data. The cuts stand in `FilterSettings`.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steer_heal.config import FilterSettings
from steer_heal.evaluate import text_health
from steer_heal.records import Completion, FilterVerdict, RoundFailed


@dataclass(frozen=True, slots=True)
class Own:
    """Base's own text under base, the unit of an answer's readings: its median perplexity and relevance."""

    perplexity: float
    relevance: float | None = None


def readings(text: str, logp: Sequence[float], about: float | None, own: Own) -> dict[str, float]:
    """What an answer is judged by: `logp` its log-probs under base, `about` its relevance, `own` the unit.

    What cannot be had fails its cut: an infinite perplexity, a relevance of minus infinity. Where base's own
    text has nothing to do with its prompts, relevance is no reading and is left out.
    """
    value = text_health.perplexity(logp)
    found = {
        "perplexity": math.inf if value is None else value,
        "perplexity_ratio": math.inf if value is None else value / own.perplexity,
        "repetition": text_health.repetition(text),
        "variety": text_health.variety(text),
    }
    if own.relevance is not None and own.relevance > 0.0:
        found["relevance_ratio"] = -math.inf if about is None else about / own.relevance
    return found


CUTS: dict[str, tuple[str, str, Callable[[float, float], bool]]] = {
    "perplexity": ("perplexity_ratio", "max_perplexity_ratio", operator.gt),
    "relevance": ("relevance_ratio", "min_relevance_ratio", operator.lt),
    "repetition": ("repetition", "max_repetition", operator.gt),
    "variety": ("variety", "min_variety", operator.lt),
}
"""Reason -> the reading, the setting it goes with, when it fails."""


def judge(found: dict[str, float], settings: FilterSettings) -> FilterVerdict:
    """Kept when every reading is within its cut; `reasons` names each cut that fails, in `CUTS`' order."""
    reasons = tuple(
        reason
        for reason, (name, cut, fails) in CUTS.items()
        if name in found and (math.isnan(found[name]) or fails(found[name], getattr(settings, cut)))
    )
    return FilterVerdict(kept=not reasons, scores=dict(found), reasons=reasons)


def eaten(verdicts: Iterable[FilterVerdict]) -> dict[str, int]:
    """How many texts each cut dropped (a text counts for every cut it fails), the hungriest first."""
    return dict(Counter(reason for verdict in verdicts for reason in verdict.reasons).most_common())


@dataclass(frozen=True)
class Text:
    """What is trained on: a prompt, and the tokens of an answer."""

    prompt: str
    ids: tuple[int, ...]


def texts(
    written: Sequence[Completion], verdicts: Sequence[FilterVerdict], *, kept: bool = True
) -> list[Text]:
    """The answers that passed, or with `kept` false the others."""
    return [
        Text(row.prompt, tuple(token.id for token in row.tokens))
        for row, verdict in zip(written, verdicts, strict=True)
        if verdict.kept == kept
    ]


def kept_texts(
    round_: int, written: Sequence[Completion], verdicts: Sequence[FilterVerdict], least: int
) -> list[Text]:
    """The steered answers that passed. `RoundFailed`, saying what ate the rest, when fewer than `least` are
    left or all are alike."""
    kept = texts(written, verdicts)
    if len(kept) < least:
        ate = ", ".join(f"{reason} {count}" for reason, count in eaten(verdicts).items())
        raise RoundFailed(
            f"Round {round_} starved: the filter kept {len(kept)} of {len(written)} answers and {least} are "
            f"needed; dropped for: {ate}. Lower data.alphas, or loosen the cuts."
        )
    if len({text.ids for text in kept}) == 1:
        raise RoundFailed(
            f"Round {round_} has nothing to learn from: all {len(kept)} kept answers are the same. Lower "
            "data.alphas, or check the model's sampling settings."
        )
    return kept
