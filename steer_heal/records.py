"""What crosses a boundary: frozen records of numbers and text, no tensors; `asdict` turns each into JSON."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from steer_heal.config import FOUNDATIONS, THRESHOLDS

TextWord = Literal["fine", "damaged", "broken"]
AnswersWord = Literal["kept", "weakened", "lost"]
RunStatus = Literal["queued", "running", "paused", "finished", "failed", "cancelled", "interrupted"]
Stage = Literal["base", "steered", "healed"]


class Stopped(Exception):
    """Raised out of a long piece of work when its `stop()` said so."""


class StoreBusy(RuntimeError):
    """Another process holds the store; the message says which. Nothing is lost: events wait in the logs."""


class RoundFailed(Exception):
    """A round that cannot be finished; the message is one sentence, and the rounds before it stand."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How a model's answers are drawn unless a request says otherwise; temperature 0 is greedy, `top_k` 0 and
    `top_p` 1 filter nothing."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded: shape, place and size, and how it is sampled."""

    name: str
    architecture: str
    n_layers: int
    width: int
    n_parameters: int
    dtype: str
    device: str
    is_demo: bool
    note: str = ""
    sampling: SamplingDefaults = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that can be chosen: what it is, and how to get it where it is not on this machine. `n_bytes`:
    on its disk, 0 where it is not there."""

    name: str
    about: str
    get: str
    is_here: bool
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Vignette:
    """One forced-choice text; `condition` is other_violate or self_violate."""

    id: str
    foundation: str
    text: str
    condition: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A short question, and the answers of which any is right."""

    question: str
    answers: tuple[str, ...]

    def told_by(self, text: str) -> bool:
        """Whether the text has one of the answers in it, as words of its own, in any case."""
        said = text.casefold()
        return any(
            re.search(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)", said) for answer in self.answers
        )


@dataclass(frozen=True, slots=True)
class Trait:
    """A pair of opposite personas on one axis; `target` maps what it is measured on, foundations or its own
    two poles, to the sign it should move by.

    `replies`: what a person of the positive pole and one of the negative would say, in pairs, each to any of
    the `scenes`; none where the trait has only its personas. `replies_drafted`: a model wrote both.
    `statements`: other such pairs, which a trait without foundations is measured by, and from which no vector
    is made.
    """

    name: str
    title: str
    description: str
    positive: str
    negative: str
    target: dict[str, int]
    scenes: tuple[str, ...] = ()
    replies: tuple[tuple[str, str], ...] = ()
    replies_drafted: bool = False
    statements: tuple[tuple[str, str], ...] = ()

    @property
    def on_own_axis(self) -> bool:
        """Whether it is measured by its own two poles, and not by foundations."""
        return not set(self.target) <= set(FOUNDATIONS)

    @property
    def by_replies(self) -> bool:
        """Whether it has replies that a model's usual method may make its vector of. Drafted ones move a
        trait on its own axis less than its personas do: docs/reports/own-traits.md."""
        return bool(self.replies) and not (self.replies_drafted and self.on_own_axis)

    def spoken(self) -> list[tuple[str, str]]:
        """The replies line by line, each behind its mark, + or -, and before a pair, behind a ?, the scene
        that it answers, where each pair has one of its own."""
        pairs = [[("+", plus), ("-", minus)] for plus, minus in self.replies]
        scenes = [[("?", scene)] for scene in self.scenes]
        if len(scenes) == len(pairs):
            pairs = [scene + pair for scene, pair in zip(scenes, pairs, strict=True)]
        return [line for pair in pairs for line in pair]

    def decides(self) -> dict[str, Any]:
        """What of it decides its vector by a method, and the dose: not the `statements`, which only measure
        it, nor who wrote the replies."""
        without = ("statements", "replies_drafted")
        return {name: value for name, value in asdict(self).items() if name not in without}


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token base preferred, and its probability under base."""

    text: str
    p_base: float


@dataclass(frozen=True, slots=True)
class Token:
    """One written token. KL(steered || base) in nats; it, base's probability and favourites are empty without
    a shadow row. `share`: of its dose, where not every token gets all of it. `carries`: how far its residual
    lies along the trait, in spreads of neutral text; known once the token after it is written.
    """

    id: int
    text: str
    p: float
    kl: float | None = None
    p_base: float | None = None
    base_top: tuple[Alternative, ...] = ()
    share: float | None = None
    carries: float | None = None

    @property
    def steered(self) -> float:
        """The share of its dose that it gets."""
        return 1.0 if self.share is None else self.share


@dataclass(frozen=True, slots=True)
class Completion:
    """One row's answer. `ended` is False when it hit the token limit or was stopped."""

    text: str
    tokens: tuple[Token, ...]
    ended: bool
    alpha: float = 0.0
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class TextHealth:
    """Scores of one text, with its word. Perplexity and relevance are under base, and `ratio` is to that of
    base's own text; None where it was not measured."""

    perplexity: float | None
    perplexity_ratio: float | None
    repetition: float
    kl_p95: float | None = None
    verdict: TextWord = "fine"
    relevance: float | None = None
    relevance_ratio: float | None = None
    variety: float | None = None


@dataclass(frozen=True, slots=True)
class FilterVerdict:
    """Whether a completion is trained on, all its scores and all the reasons against it."""

    kept: bool
    scores: dict[str, float]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VignetteScore:
    """One vignette: log-probs averaged over orders or wordings, their softmax, and how far those differ.

    `mass` is the answer mass of a choice; of a cloze it is 1, or 0 where no statement could be scored.
    """

    id: str
    foundation: str
    score: dict[str, float]
    p: dict[str, float]
    mass: float
    prefill_nll: float
    order_tv: float

    @property
    def likeliest(self) -> str | None:
        """What has the highest probability; None where nothing was answered."""
        return max(self.p, key=self.p.__getitem__) if self.mass > 0.0 else None


CANNOT_ANSWER = "this model cannot answer this question"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of the vignettes whose likeliest foundation is their label, with its 95% interval.

    `chance`: what naming the most frequent label every time would reach, 1/7 on a balanced set. Where it is
    not to be had all four are None and `why` is the clause that says so.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    why: str = ""

    @property
    def cannot_answer(self) -> bool:
        """Whether it was measured and is not above chance."""
        return self.low is not None and self.chance is not None and self.low <= self.chance

    def sentence(self, frame: str = "") -> str:
        """In words, with the frame it was asked in."""
        asked = f", frame {frame}" if frame else ""
        if self.value is None:
            return f"agreement is not to be had{asked}: {self.why}" if self.why else ""
        said = f"agreement {self.value:.2f} ({self.low:.2f}-{self.high:.2f}), chance {self.chance:.2f}{asked}"
        return f"{CANNOT_ANSWER}: {said}" if self.cannot_answer else said


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean probability of each foundation, or of a trait's two poles, over vignettes, and what it is worth.

    `coherence` is the mean answer mass of a choice, None for a cloze, which has none. `n_invalid` of the
    `n_vignettes` could not be answered at all: mass 0, left out of `p`. `order_tv`: mean total variation
    between the orders of a choice, or the wordings of a cloze. `calibration`: for each wording of a cloze,
    what was taken off the log-prob of each statement.
    """

    p: dict[str, float]
    coherence: float | None
    n_vignettes: int
    per_vignette: tuple[VignetteScore, ...] = ()
    n_invalid: int = 0
    frame: str = ""
    agreement: Agreement = Agreement()
    order_tv: float | None = None
    calibration: tuple[tuple[float, ...], ...] = ()

    def answers_against(self, base: Self) -> AnswersWord | None:
        """What is left of base's answers: by their mass, and where they have none by agreement.

        None where base is not above chance or neither is to be had: then answers judge nothing.
        """
        if base.agreement.cannot_answer:
            return None
        if base.coherence and self.coherence is not None:
            ratio = self.coherence / base.coherence
            if not ratio >= THRESHOLDS.mass_lost:
                return "lost"
            return "kept" if ratio >= THRESHOLDS.mass_weakened else "weakened"
        if self.agreement.value is None or base.agreement.low is None:
            return None
        if self.agreement.cannot_answer:
            return "lost"
        return "kept" if self.agreement.value >= base.agreement.low else "weakened"


@dataclass(frozen=True, slots=True)
class Calibration:
    """c* and how it was found. `reached` is False when a bracket end was hit: then `message` says so."""

    c_star: float
    kl_p95: float
    target_kl: float
    reached: bool
    history: tuple[tuple[float, float], ...]
    message: str = ""
    residual_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class MeasuredDose:
    """The 95th percentile, over tokens, of KL(steered || base) of one dose, in nats, and what there is to say
    of it."""

    nats: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class DoseRow:
    """One alpha of a sweep (or one cell of a grid): profile, and text health over its answers.

    `verdict` is the text's word, None where no text was read; `answers_verdict` that of what the vignettes
    were answered, None where that judges nothing. `texts` has the health of each answer, for its spread.
    """

    alpha: float
    band: tuple[float, float]
    profile: Profile | None
    coherence: float | None
    kl_p95: float | None
    repetition: float | None
    perplexity: float | None
    trait_shift: float | None
    verdict: TextWord | None
    sample: str = ""
    perplexity_ratio: float | None = None
    looping: float | None = None
    texts: tuple[TextHealth, ...] = ()
    relevance: float | None = None
    relevance_ratio: float | None = None
    answers_verdict: AnswersWord | None = None


@dataclass(frozen=True, slots=True)
class Controls:
    """What a trait's movement at alpha 1 is held against, as mean p of each foundation or pole on the same
    vignettes: base, random unit directions, each at its own c*, and base with the positive persona before a
    vignette."""

    base: dict[str, float]
    random: tuple[dict[str, float], ...]
    persona: dict[str, float] | None
    c_stars: tuple[float, ...]

    def shifts(self, target: dict[str, int]) -> tuple[float, ...]:
        """How far each random direction moves the trait."""
        return tuple(trait_shift(p, self.base, target) for p in self.random)

    def persona_shift(self, target: dict[str, int]) -> float | None:
        """How far the persona moves it."""
        return None if self.persona is None else trait_shift(self.persona, self.base, target)

    def as_far(self, target: dict[str, int], movement: float) -> int:
        """How many of the random directions move the trait at least as far as `movement`."""
        return sum(shift >= movement for shift in self.shifts(target))

    def sentence(self, target: dict[str, int], movement: float) -> str:
        """The movement held against them, in words."""
        n, persona = len(self.random), self.persona_shift(target)
        as_far = self.as_far(target, movement)
        parts = [f"{as_far} of {n} random directions of the same KL move it as far"] if n else []
        parts += ["no better than random"] if as_far else []
        parts += [] if persona is None else [f"the persona as text moves it {persona:+.3f}"]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One prompt, answered by base and at alpha 1."""

    prompt: str
    base: str
    steered: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a vector does at its c*.

    `steered`: mean p of each foundation, or of the trait's poles, at it; `intervals`: 95% interval of each
    one's movement from base. `agreement` is under steering. `promoted`, `demoted`: words that it makes
    likelier and less likely.
    """

    trait: str
    target: dict[str, int]
    layers: tuple[int, ...]
    c_star: float
    frame: str
    n_vignettes: int
    steered: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    base_agreement: Agreement
    agreement: Agreement
    controls: Controls
    promoted: tuple[str, ...]
    demoted: tuple[str, ...]
    answers: tuple[SampleAnswer, ...]

    @property
    def movement(self) -> float:
        """How far the trait moved, in units of probability."""
        return trait_shift(self.steered, self.controls.base, self.target)

    @property
    def as_far(self) -> int:
        """How many of the random directions moved it as far."""
        return self.controls.as_far(self.target, self.movement)

    def sentence(self) -> str:
        """How far the trait moved, and whether that is more than random directions and the persona do."""
        return f"movement {self.movement:+.3f}; {self.controls.sentence(self.target, self.movement)}"


def trait_shift(moved: dict[str, float], base: dict[str, float], target: dict[str, int]) -> float:
    """How far a profile moved along a trait: sum over the target's foundations of sign * (p - p of base).

    For `care_over_authority`: Care up plus SocialNorms down, in units of probability.
    """
    return sum(sign * (moved[name] - base[name]) for name, sign in target.items())


@dataclass(frozen=True, slots=True)
class Sweep:
    """How far a sweep or grid has come: the share done and its rows so far; `waiting` counts requests ahead.

    `breaks`: for each word of the text or of the answers the least positive alpha from which on one of them
    is as bad. `reading`: what the frame is worth. `controls`: on the same vignettes, last. `nat`: the alpha
    that costs as much as they do, 1 but for a mix; None where no dose of the mix does.
    """

    share: float
    rows: list[DoseRow]
    breaks: dict[str, float] = field(default_factory=dict)
    waiting: int = 0
    reading: Profile | None = None
    controls: Controls | None = None
    nat: float | None = 1.0

    @property
    def movement(self) -> float | None:
        """How far the trait moves at `nat`, which is what controls are held against; None where that dose was
        not measured."""
        return next((row.trait_shift for row in self.rows if row.alpha == self.nat), None)

    def against(self, target: dict[str, int]) -> str:
        """The movement held against the controls, in words; nothing where there is none to hold."""
        if self.nat is None:
            return "no dose of this mix costs the nat at which random directions would stand beside it"
        if self.controls is None or self.movement is None or not target:
            return ""
        said = self.controls.sentence(target, self.movement)
        return f"at alpha {self.nat:g} the trait moves {self.movement:+.3f}: {said}"


@dataclass(frozen=True, slots=True)
class SteerFrame:
    """A moment of a streaming pair. Lists grow; `waiting` counts requests ahead; `done` is the last frame.

    `dose_nats` is measured; with `dose_beyond` the dose is larger than any that was, and costs more.
    `base_health` stands beside the steered text's.
    """

    base: tuple[Token, ...]
    steered: tuple[Token, ...]
    base_done: bool
    done: bool
    waiting: int = 0
    superseded: bool = False
    seconds: float = 0.0
    health: TextHealth | None = None
    dose_nats: float | None = None
    dose_fraction: float | None = None
    c_star: float | None = None
    message: str = ""
    dose_beyond: bool = False
    base_health: TextHealth | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """One answer in a conversation as far as it is written; its health once all are whole. `finish`: what
    ended it, the model itself (stop) or the limit of tokens (length); empty before."""

    tokens: tuple[Token, ...]
    health: TextHealth | None = None
    finish: Literal["", "stop", "length"] = ""

    @property
    def cut(self) -> bool:
        return self.finish == "length"

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, slots=True)
class TalkFrame:
    """A moment of a conversation's answers: of each voice each of its samples. `together`: how they are
    written, in words. `n_prompt`: tokens of what the first voice was given. `done` is the last frame."""

    voices: tuple[tuple[Spoken, ...], ...]
    together: str = ""
    done: bool = False
    waiting: int = 0
    superseded: bool = False
    seconds: float = 0.0
    message: str = ""
    n_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a run's log. `seq` rises from 0 without gaps; `time` is seconds since the epoch."""

    seq: int
    time: float
    kind: str
    round: int | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run in the table of runs. `round` is the last finished one (0: none); times are epoch seconds.

    `done` of `total`, at `rate` a second, is how far its stage is, where that is counted; `eta`, the seconds
    that it still takes, where that is known. `mix`: what it heals instead of the trait's vector, which is
    then what is measured.
    """

    run_id: str
    name: str
    model: str
    trait: str
    seed: int
    preset: str
    status: RunStatus
    rounds: int
    round: int
    stage: str
    progress: float
    started_at: float | None
    finished_at: float | None
    retention: float | None
    is_example: bool
    message: str
    hidden: bool = False
    eta: float | None = None
    done: float | None = None
    total: float | None = None
    rate: float | None = None
    mix: str = ""


@dataclass(frozen=True, slots=True)
class MapNode:
    """One point of the map: a stage of a round. `vignette_set`: "classic" (published) or "" (ours).

    What it is worth stands last, as in `Agreement`, None where it was not measured; then mean p of all seven
    foundations, or of a trait's own two poles, where care and social norms are None.
    """

    run_id: str
    model: str
    trait: str
    seed: int
    round: int
    stage: Stage
    alpha: float
    care: float | None
    social_norms: float | None
    coherence: float | None
    n_vignettes: int
    finished_at: float
    retention: float | None
    is_example: bool
    vignette_set: str = ""
    agreement: float | None = None
    frame: str | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    chance: float | None = None
    relevance: float | None = None
    text_verdict: str | None = None
    answers_verdict: str | None = None
    profile: dict[str, float] = field(default_factory=dict)
    mix: str = ""

    @property
    def worth(self) -> Agreement:
        return Agreement(self.agreement, self.agreement_low, self.agreement_high, self.chance)


@dataclass(frozen=True, slots=True)
class ControlNode:
    """A point of the map that a run is held against: base under a random direction, or told the persona."""

    run_id: str
    kind: Literal["random", "persona"]
    care: float | None
    social_norms: float | None
    profile: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One combination of a sweep's values as it stands: its run; "" and "skipped" where it cannot run, "none"
    where it has none (any more). `message` says why it was skipped, or what its run has to say."""

    values: dict[str, Any]
    run_id: str
    status: str
    message: str


@dataclass(frozen=True, slots=True)
class SweepGroup:
    """The finished runs of one setting, which differ in their seeds: of each reading the mean, and the
    standard deviation over seeds, None of a single one."""

    values: dict[str, Any]
    seeds: tuple[int, ...]
    mean: dict[str, float | None]
    spread: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class SweepDifference:
    """A reading of `other` minus that of `one`, two settings that differ in `axis` alone, over the `n` seeds
    that both have: mean, and its 95% interval by Student's t (None for one seed)."""

    axis: str
    one: dict[str, Any]
    other: dict[str, Any]
    reading: str
    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """In a word; "no different" where the interval holds 0."""
        if self.low is None or self.high is None:
            return "one seed tells nothing"
        return "no different" if self.low <= 0.0 <= self.high else "higher" if self.mean > 0.0 else "lower"


@dataclass(frozen=True, slots=True)
class SweepTable:
    """What the runs of a sweep come to. `rounds`: the rows of the view `sweep_cells`; `last`: of these the
    last round of each run that finished, of which groups and differences are."""

    cells: tuple[SweepCell, ...]
    rounds: tuple[dict[str, Any], ...]
    last: tuple[dict[str, Any], ...]
    groups: tuple[SweepGroup, ...]
    differences: tuple[SweepDifference, ...]

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "cells": [asdict(cell) for cell in self.cells],
            "rounds": list(self.rounds),
            "groups": [asdict(group) for group in self.groups],
            "differences": [asdict(one) | {"verdict": one.verdict} for one in self.differences],
        }


@dataclass(frozen=True, slots=True)
class SweepForecast:
    """What a sweep of `runs` runs, `at_once` at a time, would take. `skipped`: the cells that cannot run, and
    why. `seconds` in all by the `known` runs of the same models and presets that finished; None where none
    did. `n_bytes`: main memory that the largest run needs; None where a model is not on this machine.
    `left`: bytes of it that are free here; None for runs on a cluster."""

    runs: int
    skipped: tuple[str, ...]
    at_once: int
    known: int
    seconds: float | None
    n_bytes: int | None
    left: int | None


@dataclass(frozen=True, slots=True)
class CompletionRow:
    """A completion a round made: its text, whether it was kept, its scores and reasons."""

    run_id: str
    round: int
    index: int
    alpha: float
    prompt: str
    text: str
    kept: bool
    scores: dict[str, float]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundDetail:
    """All of one round, for the panel a click on the map opens; profiles keyed by stage.

    `facts`: headline, intervals, differences, shift_cosine, facts_kept, neutral_kl and path of its `round`
    event; the path is movement and health of base, of steering at some alphas, and of the rounds so far.
    `worth`: the agreement of each stage, asked in `frame`. `words`: of each answer by stage its text's word,
    or "loops"; "" where it is not known.
    """

    run_id: str
    round: int
    profiles: dict[str, dict[str, float]]
    coherence: dict[str, float]
    retention: float | None
    kept: int
    made: int
    c_star: float | None
    text: dict[str, float]
    answers: tuple[dict[str, str], ...]
    settings: dict[str, Any]
    losses: tuple[dict[str, float], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    worth: dict[str, Agreement] = field(default_factory=dict)
    frame: str = ""
    words: tuple[dict[str, str], ...] = ()
