"""Which of a round's answers are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steer_heal.evaluate import text_health
from steer_heal.records import Completion, FilterVerdict, RoundFailed


@dataclass(frozen=True)
class Text:
    """What is trained on: a prompt, and the tokens of an answer that passed the filter."""

    prompt: str
    ids: tuple[int, ...]


def texts(written: Sequence[Completion], verdicts: Sequence[FilterVerdict]) -> list[Text]:
    """The answers that passed."""
    return [
        Text(row.prompt, tuple(token.id for token in row.tokens))
        for row, verdict in zip(written, verdicts, strict=True)
        if verdict.kept
    ]


def kept_texts(
    round_: int, written: Sequence[Completion], verdicts: Sequence[FilterVerdict], least: int
) -> list[Text]:
    """The steered answers that passed. `RoundFailed`, saying what ate the rest, when fewer than `least` are
    left or all are alike."""
    kept = texts(written, verdicts)
    if len(kept) < least:
        ate = ", ".join(f"{reason} {count}" for reason, count in text_health.eaten(verdicts).items())
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
