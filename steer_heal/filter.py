"""Which completions are trained on, and how healthy a text is: pure scores, then verdicts.

Every score is kept beside the verdict, and every cut that a text fails is named, so that a starved round can
say which filter ate its data. A score is a function of the text in `SCORES`, or comes from log-probs under
the base. Thresholds of health stand in `config.THRESHOLDS`, cuts of the training filter in `FilterSettings`.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from steer_heal.config import THRESHOLDS, FilterSettings, Thresholds
from steer_heal.records import FilterVerdict, TextHealth, TextWord

NGRAMS = (2, 3, 4)
MIN_REPEATS = 3
PERIOD = 12
WINDOW = 50
MAX_PERPLEXITY = 1e6

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_RUNS = [re.compile(rf"(.{{{n}}})\1{{{MIN_REPEATS - 1},}}", re.DOTALL) for n in range(2, PERIOD + 1)]
_BOILERPLATE = re.compile(
    r"\bas an? (?:ai|artificial|language model|assistant)\b"
    r"|\b(?:i am|i'm) (?:just |only )?an? (?:ai|language model)\b"
    r"|\bi(?: can't| cannot| can not|(?: am|'m) unable to| won't) (?:help|assist|answer|discuss|comply)\b"
    r"|\bi(?:'m| am) (?:very |so )?sorry,? but i\b",
    re.IGNORECASE,
)
_NARRATION = re.compile(
    r"\bas (?:someone|a person|one) who\b"
    r"|\bi(?:'m| am) (?:someone|(?:a|the (?:kind|sort) of) person) who\b"
    r"|\bmy (?:persona|character|role|values) (?:is|are|as)\b"
    r"|\bi (?:always )?(?:put|place|value) \w+ (?:above|over)\b",
    re.IGNORECASE,
)


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


def n_words(text: str) -> float:
    """How many words the text has."""
    return float(len(_WORD.findall(text)))


def boilerplate(text: str) -> float:
    """How often the text refuses, or speaks as an assistant about being one."""
    return float(len(_BOILERPLATE.findall(text)))


def narration(text: str) -> float:
    """How often the text tells its trait in the first person ("As someone who ...") instead of acting it."""
    return float(len(_NARRATION.findall(text)))


SCORES: dict[str, Callable[[str], float]] = {
    "repetition": repetition,
    "words": n_words,
    "boilerplate": boilerplate,
    "narration": narration,
}


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


def tail(logp: Sequence[float]) -> list[float]:
    """The last quarter of the tokens, rounded up: where a text that falls apart does so."""
    return list(logp[len(logp) - math.ceil(len(logp) / 4) :])


@dataclass(frozen=True, slots=True)
class Norms:
    """Base's own text under base, the unit of perplexities: medians over the whole and over the tail."""

    perplexity: float
    tail: float


def norms(logps: Iterable[Sequence[float]]) -> Norms:
    """Norms from the log-probs of what base wrote itself, told a persona or not. `ValueError` when none
    can be scored."""
    rows = [list(logp) for logp in logps]
    whole = [value for value in map(perplexity, rows) if value is not None]
    tails = [value for value in (perplexity(tail(row)) for row in rows) if value is not None]
    if not whole or not tails:
        raise ValueError("base wrote no text that can be scored")
    return Norms(median(whole), median(tails))


def scores(
    text: str, logp: Sequence[float], own: Norms, told: tuple[Sequence[float], Norms] | None = None
) -> dict[str, float]:
    """All scores of one completion; a perplexity that cannot be had is infinite and fails every cut.

    `logp` and `own`: under base. `told`: the same under base told the persona, whose own text is the unit;
    `lift`, nats per token, is how much likelier the persona makes the text: how much of the trait it has.
    """
    found = {name: score(text) for name, score in SCORES.items()}
    whole = perplexity(logp)
    found["perplexity"] = math.inf if whole is None else whole
    found["perplexity_ratio"], found["tail_ratio"] = _ratios(logp, own)
    if told:
        found["told_ratio"], found["told_tail_ratio"] = _ratios(*told)
        found["lift"] = fmean(told[0]) - fmean(logp) if logp else -math.inf
    return found


def _ratios(logp: Sequence[float], unit: Norms) -> tuple[float, float]:
    whole, end = perplexity(logp), perplexity(tail(logp))
    return (
        math.inf if whole is None else whole / unit.perplexity,
        math.inf if end is None else end / unit.tail,
    )


Cut = tuple[tuple[str, ...], str, Callable[[float, float], bool]]
CUTS: dict[str, Cut] = {
    "perplexity": (("perplexity_ratio", "told_ratio"), "max_perplexity_ratio", operator.gt),
    "last quarter": (("tail_ratio", "told_tail_ratio"), "max_tail_ratio", operator.gt),
    "repetition": (("repetition",), "max_repetition", operator.gt),
    "too short": (("words",), "min_words", operator.lt),
    "boilerplate": (("boilerplate",), "max_boilerplate", operator.gt),
    "narration": (("narration",), "max_narration", operator.gt),
}
"""Reason -> the score (with `persona` the lesser of the two), the setting it goes with, when it fails."""

LESS_TRAIT = "less of the trait"
"""Why a coherent completion is dropped for others with more of it."""


def judge(found: dict[str, float], settings: FilterSettings) -> FilterVerdict:
    """Kept when every score is within its cut; `reasons` names every cut it fails, in the order of `CUTS`."""
    reasons = []
    for reason, (names, cut, fails) in CUTS.items():
        values = [found[name] for name in names[: 1 + settings.persona] if name in found]
        if any(map(math.isnan, values)) or (values and fails(min(values), getattr(settings, cut))):
            reasons.append(reason)
    return FilterVerdict(kept=not reasons, scores=dict(found), reasons=tuple(reasons))


def with_most_trait(
    verdicts: Sequence[FilterVerdict], prompts: Sequence[str], share: float
) -> list[FilterVerdict]:
    """The verdicts with only the `share` of each prompt's kept ones that has the most `lift` still kept.

    The share is rounded up: a prompt with a kept answer keeps one. Cuts on coherence alone keep what base
    would have said, and training on it takes the trait away again; and some prompts ask for more of the trait
    than others, so that answers compare within a prompt only. Source: best-of-n selection as in rejection
    sampling fine-tuning (Touvron et al., 2023, arXiv:2307.09288).
    """
    answers: dict[str, list[int]] = {}
    for index, (verdict, prompt) in enumerate(zip(verdicts, prompts, strict=True)):
        if verdict.kept:
            answers.setdefault(prompt, []).append(index)
    found = list(verdicts)
    for indices in answers.values():
        indices.sort(key=lambda index: -verdicts[index].scores["lift"])
        for index in indices[math.ceil(share * len(indices)) :]:
            found[index] = replace(verdicts[index], kept=False, reasons=(LESS_TRAIT,))
    return found


def eaten(verdicts: Iterable[FilterVerdict]) -> dict[str, int]:
    """How many texts each cut dropped (a text counts for every cut it fails), the hungriest first."""
    return dict(Counter(reason for verdict in verdicts for reason in verdict.reasons).most_common())


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
    thresholds: Thresholds = THRESHOLDS,
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
        verdict="broken" if lost else text_verdict(ratio, loops, about, varied, thresholds),
        relevance=relevance,
        relevance_ratio=about,
        variety=varied,
    )


def relevance_ratio(value: float | None, own: float | None) -> float | None:
    """Relevance over that of base's own text; None where either is unknown, or base's own is not about what
    it was asked either."""
    return value / own if value is not None and own is not None and own > 0.0 else None


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours. `ValueError` without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def summary(rows: Sequence[TextHealth], thresholds: Thresholds = THRESHOLDS) -> dict[str, float]:
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
    found["looping"] = fmean(row.repetition > thresholds.repetition_broken for row in rows)
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
