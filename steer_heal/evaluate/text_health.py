"""How healthy a text is: readings of it, or of its log-probs under the base, then one word. Pure.

The thresholds stand in `config.THRESHOLDS`; docs/reports/text-health.md shows what they were fitted on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from steer_heal.config import THRESHOLDS, Thresholds
from steer_heal.records import TextHealth, TextWord

NGRAMS = (2, 3, 4)
MIN_REPEATS = 3
PERIOD = 12
WINDOW = 50
MAX_PERPLEXITY = 1e6

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_RUNS = [re.compile(rf"(.{{{n}}})\1{{{MIN_REPEATS - 1},}}", re.DOTALL) for n in range(2, PERIOD + 1)]


def repetition(text: str) -> float:
    """How much of the text is a loop, from 0 to 1: the larger of two shares, case-folded.

    Share of n-grams: the most frequent word 2- to 4-gram over all of its size, when it occurs at least three
    times. Share in runs: the words, or the characters without white space, that lie in a unit said at least
    three times in a row (up to `PERIOD` words, 2 to 4 characters). A name or phrase that comes again and
    again in good sentences is neither.
    """
    words = _WORD.findall(text.casefold())
    characters = re.sub(r"\s+", "", text.casefold())
    shares = [_most_frequent(words, n) for n in NGRAMS]
    shares += [_run_share(words, period) for period in range(1, PERIOD + 1)]
    if characters:
        shares += [
            sum(len(run.group()) for run in runs.finditer(characters)) / len(characters) for runs in _RUNS
        ]
    return max(shares)


def _most_frequent(words: Sequence[str], n: int) -> float:
    """Share of the most frequent n-gram among all; 0 below `MIN_REPEATS` occurrences."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    most = max(counts.values(), default=0)
    return most / counts.total() if most >= MIN_REPEATS else 0.0


def _run_share(words: Sequence[str], period: int) -> float:
    """Share of the words inside runs where a unit of `period` words is said `MIN_REPEATS` times or more."""
    inside = run = 0
    for place in range(period, len(words) + 1):
        if place < len(words) and words[place] == words[place - period]:
            run += 1
            continue
        if run >= (MIN_REPEATS - 1) * period:
            inside += run + period
        run = 0
    return inside / len(words) if words else 0.0


def variety(text: str) -> float:
    """Share of distinct words, case-folded, the mean over every `WINDOW` words in a row; 1 without words.

    Source: moving-average type-token ratio (Covington and McFall, 2010, Journal of Quantitative Linguistics).
    """
    words = _WORD.findall(text.casefold())
    size = min(len(words), WINDOW)
    windows = range(len(words) - size + 1)
    return fmean(len(set(words[at : at + size])) / size for at in windows) if words else 1.0


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Share of distinct pairs of neighbouring words over several texts, case-folded; 1 without any.

    Low where a model gives different prompts the same answer. Source: Li et al., 2016, arXiv:1510.03055.
    """
    spoken = [_WORD.findall(text.casefold()) for text in texts]
    pairs = [pair for words in spoken for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def perplexity(logp: Sequence[float]) -> float | None:
    """exp of the mean negative log-prob of the tokens, at most 1e6; None without tokens or if not finite."""
    if not logp or not all(math.isfinite(value) for value in logp):
        return None
    return min(math.exp(min(-fmean(logp), 100.0)), MAX_PERPLEXITY)


def relevance(own: Sequence[float], others: Sequence[Sequence[float]]) -> float | None:
    """Nats a token by which an answer is likelier after its own prompt than after others, on average.

    `own`: its log-probs after its own prompt, `others`: after each of the others. About 0 where the answer
    has nothing to do with what was asked. None without tokens, without others or if not finite. Source:
    pointwise mutual information of prompt and reply (Li et al., 2016, arXiv:1510.03055).
    """
    if not own or not others or not all(math.isfinite(value) for row in (own, *others) for value in row):
        return None
    return fmean(own) - fmean(map(fmean, others))


def text_verdict(
    perplexity_ratio: float | None,
    loops: float,
    relevance_ratio: float | None,
    varied: float = 1.0,
    limits: Thresholds = THRESHOLDS,
) -> TextWord:
    """By perplexity and relevance over those of base's own text, None where not measured, by repetition and
    by variety.

    Broken is a text that loops, that has little to do with its own prompt, that says the same words over and
    over, or that is very unlikely: whichever of the four it is.
    """
    ratio = 1.0 if perplexity_ratio is None else perplexity_ratio
    about = limits.relevance_damaged if relevance_ratio is None else relevance_ratio
    strays, unlikely = about < limits.relevance_broken, ratio > limits.perplexity_broken
    if loops > limits.repetition_broken or strays or varied < limits.variety_broken or unlikely:
        return "broken"
    return "damaged" if ratio > limits.perplexity_damaged or about < limits.relevance_damaged else "fine"


def health(
    text: str,
    logp: Sequence[float] | None = None,
    own_perplexity: float | None = None,
    *,
    kl: Sequence[float] | None = None,
    relevance: float | None = None,
    own_relevance: float | None = None,
) -> TextHealth:
    """Health of one text from its log-probs under base and its relevance (None: not measured), and base's own
    perplexity and relevance.

    `kl` is KL(steered || base) per token, for its 95th percentile. Log-probs that are not finite are broken.
    """
    value = perplexity(logp) if logp else None
    ratio = value / own_perplexity if value is not None and own_perplexity else None
    about = relevance_ratio(relevance, own_relevance)
    loops, varied = repetition(text), variety(text)
    lost = bool(logp) and value is None
    return TextHealth(
        perplexity=value,
        perplexity_ratio=ratio,
        repetition=loops,
        kl_p95=quantile(kl, 0.95) if kl else None,
        verdict="broken" if lost else text_verdict(ratio, loops, about, varied),
        relevance=relevance,
        relevance_ratio=about,
        variety=varied,
    )


def relevance_ratio(value: float | None, own: float | None) -> float | None:
    """Relevance over that of base's own text; None where either is unknown, or base's own is not about what
    it was asked either."""
    return value / own if value is not None and own is not None and own > 0.0 else None


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours."""
    return float(np.quantile(values, q))


def summary(rows: Sequence[TextHealth]) -> dict[str, float]:
    """Health of a set of texts: medians, and the shares that loop (`looping`), that are not fine (`damaged`)
    and that are `broken`.

    Texts whose perplexity could not be had count with the largest one; where no relevance was measured it is
    left out. Empty for no texts.
    """
    if not rows:
        return {}
    own = [row.perplexity / row.perplexity_ratio for row in rows if row.perplexity and row.perplexity_ratio]
    worst = MAX_PERPLEXITY
    found = {"perplexity": median(worst if row.perplexity is None else row.perplexity for row in rows)}
    if own:
        found["perplexity_ratio"] = found["perplexity"] / own[0]
    found["repetition"] = median(row.repetition for row in rows)
    found["looping"] = fmean(row.repetition > THRESHOLDS.repetition_broken for row in rows)
    for name in ("relevance", "relevance_ratio"):
        if (value := middle(getattr(row, name) for row in rows)) is not None:
            found[name] = value
    found["damaged"] = fmean(row.verdict != "fine" for row in rows)
    found["broken"] = fmean(row.verdict == "broken" for row in rows)
    return found


def middle(values: Iterable[float | None]) -> float | None:
    """Median of the values that were measured; None where none was."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def set_verdict(text: Mapping[str, float]) -> TextWord | None:
    """The word of a set of texts from its `summary`: as bad as at least half of them; None for no texts."""
    if not text:
        return None
    return "broken" if text["broken"] >= 0.5 else "damaged" if text["damaged"] >= 0.5 else "fine"
