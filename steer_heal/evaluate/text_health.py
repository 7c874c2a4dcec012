"""How healthy a text is: readings of it, or of its log-probs under the base, then one word. Pure.

The thresholds stand in `config.THRESHOLDS`; docs/reports/text-health.md shows what they were fitted on.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

import numpy as np

from steer_heal.config import THRESHOLDS, Thresholds
from steer_heal.records import TextHealth, TextWord

CUT = " … (cut)"
"""What a printed text ends in that the limit of tokens has cut."""
STRETCH = 16
WINDOW = 50
MAX_PERPLEXITY = 1e6

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_RUN = re.compile(r"(.{2,12}?)\1{2,}", re.DOTALL)


def repetition(text: str, earlier: str = "") -> float:
    """Share of the text that says again what it, or `earlier`, has said, from 0 to 1.

    Counted are the characters, case-folded and without white space, of each stretch of `STRETCH` that was
    there before, and of each run in which 2 to 12 characters are said three times or more. So a name or a
    turn of phrase that comes again does not count; a sentence said twice does, and so does a loop that
    changes a word as it goes. `earlier`: what the same voice said before in a conversation.
    """
    said, before = (re.sub(r"\s+", "", part.casefold()) for part in (text, earlier))
    again = {place for run in _RUN.finditer(said) for place in range(*run.span())}
    seen = {before[start : start + STRETCH] for start in range(len(before) - STRETCH + 1)}
    for start in range(len(said) - STRETCH + 1):
        stretch = said[start : start + STRETCH]
        if stretch in seen:
            again.update(range(start, start + STRETCH))
        seen.add(stretch)
    return len(again) / len(said) if said else 0.0


def loops(text: str) -> bool:
    """Whether so much of the text, which may end in `CUT`, says itself again that it reads as a loop."""
    return repetition(text.removesuffix(CUT)) > THRESHOLDS.repetition_broken


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
    again: float,
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
    if again > limits.repetition_broken or strays or varied < limits.variety_broken or unlikely:
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
    earlier: str = "",
) -> TextHealth:
    """Health of one text from its log-probs under base and its relevance (None: not measured), and base's own
    perplexity and relevance.

    `kl` is KL(steered || base) per token, for its 95th percentile; `earlier` as in `repetition`. Log-probs
    that are not finite are broken.
    """
    value = perplexity(logp) if logp else None
    ratio = value / own_perplexity if value is not None and own_perplexity else None
    about = relevance_ratio(relevance, own_relevance)
    again, varied = repetition(text, earlier), variety(text)
    lost = bool(logp) and value is None
    return TextHealth(
        perplexity=value,
        perplexity_ratio=ratio,
        repetition=again,
        kl_p95=quantile(kl, 0.95) if kl else None,
        verdict="broken" if lost else text_verdict(ratio, again, about, varied),
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
