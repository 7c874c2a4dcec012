"""One word on a round that nobody can misread, judged in a fixed order from what was measured. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from steer_heal.config import HEAL_THRESHOLDS, HealThresholds
from steer_heal.evaluate.text_health import loops, relevance_ratio
from steer_heal.records import CANNOT_ANSWER, Controls, trait_shift

Word = Literal[
    "collapsed", "cannot answer", "moved the other way", "too little trait kept", "no better than random",
    "not specific", "kept but costly", "healed",
]  # fmt: skip
ORDER: tuple[Word, ...] = get_args(Word)


@dataclass(frozen=True, slots=True)
class Headline:
    """The word, the one reason for it with its figure, and the thresholds it was judged by."""

    word: Word
    why: str
    thresholds: dict[str, float]

    def sentence(self) -> str:
        return f"{self.word}: {self.why}"

    def counting(self, printed: Sequence[str], base: Sequence[str]) -> Self:
        """The same, which also says how many of the printed answers loop, where one does; `base`: base's own
        to the same prompts. Eight answers are too few to judge a round by, but they are what one reads."""
        n, own = (sum(map(loops, texts)) for texts in (printed, base))
        count = f"{n} of its {len(printed)} printed answers loop, {own} of base's own"
        return replace(self, why=f"{self.why}; {count}") if n else self


def judge(
    base: Mapping[str, Any],
    healed: Mapping[str, Any],
    target: Mapping[str, int],
    retention: float | None,
    thresholds: HealThresholds = HEAL_THRESHOLDS,
    controls: Controls | None = None,
    cost: Mapping[str, float | None] = MappingProxyType({}),
) -> Headline:
    """The first of `ORDER` that holds.

    `base`, `healed`: the data of their `profile` events (p, coherence, text). Answer mass counts where both
    have a coherence; nothing but the text does where base has `cannot_answer`. Answers may loop as often as
    base's own, where that is more than the limit, and by chance oftener where they are few (`n_answers`).
    `target`: foundation -> sign.
    `controls`: what random directions move, where they were measured. `cost`: `facts_kept` and `neutral_kl`,
    likewise.
    """
    limits, text = thresholds, healed["text"]
    said = thresholds.model_dump()
    silent = bool(base.get("cannot_answer"))
    has_mass = base["coherence"] is not None and not silent
    masses = [healed["coherence"]] if has_mass else []
    figures = [*healed["p"].values(), *masses, text.get("perplexity"), text.get("looping")]
    if any(value is None or not math.isfinite(value) for value in figures):
        return Headline("collapsed", "a measurement is not a finite number", said)
    mass = 1.0 if not has_mass else healed["coherence"] / base["coherence"] if base["coherence"] else 0.0
    ratio = text["perplexity"] / base["text"]["perplexity"]
    about = relevance_ratio(text.get("relevance"), base["text"].get("relevance"))
    health = mass, text["looping"], ratio, about, base["text"].get("looping") or 0.0, text.get("n_answers")
    if broken := _damages(*health, limits, "collapsed"):
        return Headline("collapsed", broken[0], said)
    if silent:
        looping = f"{text['looping']:.0%} of its sampled answers loop, perplexity {ratio:.2f}x base's own"
        return Headline("cannot answer", f"{CANNOT_ANSWER}; by its text alone: {looping}", said)
    if retention is not None and retention < 0.0:
        why = f"retention {retention:.2f}, away from where steering moved it"
        return Headline("moved the other way", why, said)
    if retention is None or retention < limits.retention_kept:
        had = "steering moved nothing" if retention is None else f"retention {retention:.2f}"
        return Headline("too little trait kept", f"{had}, {limits.retention_kept:g} is needed", said)
    movement = trait_shift(dict(healed["p"]), dict(base["p"]), dict(target))
    if controls is not None and (n := controls.as_far(dict(target), movement)):
        why = f"{n} of {len(controls.random)} random directions of the same KL move the trait as far"
        return Headline("no better than random", why, said)
    if (other := _spill(base["p"], healed["p"], target, limits.room)) and other[1] >= limits.spill:
        why = f"{other[0]} moved {other[1]:.2f} times as much as the target, below {limits.spill:g} is needed"
        if math.isinf(other[1]):
            why = f"the target's foundations did not move towards the trait, {other[0]} moved"
        return Headline("not specific", why, said)
    kept = f"retention {retention:.2f}"
    alike = _alike(base["text"].get("diversity"), text.get("diversity"), limits)
    if paid := [*_damages(*health, limits, "healthy"), *alike, *_losses(cost, limits)]:
        return Headline("kept but costly", f"{kept}, but {'; '.join(paid)}", said)
    return Headline("healed", f"{kept}, perplexity {ratio:.2f}x base's own", said)


def _damages(
    mass: float,
    looping: float,
    ratio: float,
    about: float | None,
    own_looping: float,
    n_answers: int | None,
    limits: HealThresholds,
    level: Literal["collapsed", "healthy"],
) -> list[str]:
    """What is beyond the level's limits, each with its figure, the gravest kind first."""
    least, often, most, relevant = (
        getattr(limits, f"{name}_{level}") for name in ("mass", "looping", "perplexity", "relevance")
    )
    often = max(often, own_looping)
    found = {
        f"answer mass {mass:.2f} of base's, below {least:g}": mass < least,
        f"{looping:.0%} of its sampled answers loop, above {often:.0%}": _above(looping, often, n_answers),
        f"perplexity {ratio:.1f}x base's own, above {most:g}x": ratio > most,
        f"relevance {about or 0.0:.2f} of base's, below {relevant:g}": about is not None and about < relevant,
    }
    return [why for why, beyond in found.items() if beyond]


def _above(share: float, limit: float, n: int | None) -> bool:
    """Whether a share is above the limit, and by more than chance where it is of n answers: as many of them
    loop less than once in twenty times where the limit is what is true (a binomial test)."""
    if n is None or share <= limit:
        return share > limit
    fewer = sum(math.comb(n, k) * limit**k * (1.0 - limit) ** (n - k) for k in range(round(share * n)))
    return 1.0 - fewer < 0.05


def _alike(own: float | None, diversity: float | None, limits: HealThresholds) -> list[str]:
    """That different prompts get much the same answer, by the distinct bigrams of all; `own`: base's."""
    ratio = diversity / own if own and diversity is not None else 1.0
    few = ratio < limits.diversity_healthy
    return [f"distinct bigrams {ratio:.2f} of base's, below {limits.diversity_healthy:g}"] if few else []


def _losses(cost: Mapping[str, float | None], limits: HealThresholds) -> list[str]:
    """What is lost of what has nothing to do with the trait."""
    facts, kl = cost.get("facts_kept"), cost.get("neutral_kl")
    lost = [] if facts is None or facts >= limits.facts_healthy else [f"{facts:.0%} of the facts kept"]
    far = kl is not None and kl > limits.neutral_kl_healthy
    return [*lost, f"KL from base {kl:.2f} nats a token on neutral prompts"] if far else lost


def _spill(
    base_p: Mapping[str, float], healed_p: Mapping[str, float], target: Mapping[str, int], room: float
) -> tuple[str, float] | None:
    """The foundation off the target that moved most, over the mean movement of the target's; None without.

    Probabilities sum to 1. Where a foundation that should fall has less than `room` to lose, what the others
    gain must come from elsewhere: it is left out, and so are falls off the target; rises likewise.
    """
    left = {name: base_p[name] if sign < 0 else 1 - base_p[name] for name, sign in target.items()}
    able = [name for name in target if left[name] >= room] or list(target)
    excused = {sign for name, sign in target.items() if name not in able}
    moved = {name: healed_p[name] - base_p[name] for name in healed_p}
    aimed = [target[name] * moved[name] for name in able]
    others = {
        name: abs(by)
        for name, by in moved.items()
        if name not in target and math.copysign(1, by) not in excused
    }
    if not others or not aimed:
        return None
    name = max(others, key=lambda key: others[key])
    mean = sum(aimed) / len(aimed)
    return name, others[name] / mean if mean > 0 else math.inf
