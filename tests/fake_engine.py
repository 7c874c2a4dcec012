"""A stand-in for `steer_heal.engine.Engine` without torch: deterministic answers, runs that progress by the clock."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from steer_heal.config import (
    FOUNDATIONS,
    DoseRequest,
    HealSettings,
    SettingsError,
    SteerRequest,
    check_band,
    check_run_id,
    heal_settings,
)
from steer_heal.records import (
    Alternative,
    Calibration,
    CompletionRow,
    DoseRow,
    MapNode,
    ModelInfo,
    Profile,
    RoundDetail,
    RunRow,
    SteerFrame,
    TextHealth,
    Token,
    Trait,
    Vignette,
)

STAGES = ("extract", "calibrate", "generate", "filter", "train", "evaluate")
BASE = {
    "Care": 0.25, "Fairness": 0.03, "Loyalty": 0.01, "Authority": 0.005,
    "Sanctity": 0.005, "Liberty": 0.05, "SocialNorms": 0.65,
}  # fmt: skip
DULL = "I would say this is odd but it is how people here have always done it , and nobody minds much .".split()
KIND = "I would go and help them first , because someone is hurt and that matters more than any rule .".split()
EXAMPLE = "example-care-0"


def profile_at(alpha: float) -> dict[str, float]:
    """The fake model's seven foundations: SocialNorms falls and Care rises with alpha."""
    shift = 0.3 * math.tanh(0.5 * alpha)
    return {**BASE, "Care": BASE["Care"] + 0.8 * shift, "SocialNorms": BASE["SocialNorms"] - shift,
            "Liberty": BASE["Liberty"] + 0.2 * shift}  # fmt: skip


@dataclass
class FakeRun:
    run_id: str
    settings: HealSettings
    started: float
    first_round: int = 1
    cancelled: float | None = None
    example: bool = False
    status: str | None = None


@dataclass
class FakeEngine:
    """Same face as the engine. `delay` seconds a token, `round_seconds` a round."""

    delay: float = 0.02
    round_seconds: float = 3.0
    calls: list[SteerRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.info = ModelInfo("demo", "FakeForCausalLM", 10, 160, 3_040_000, "float32", "cpu", True)
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()
        example = heal_settings("quick", rounds=2, name="Example: care over authority")
        self._runs = {EXAMPLE: FakeRun(EXAMPLE, example, 1_700_000_000.0, example=True)}

    def traits(self) -> list[Trait]:
        return [
            Trait("care_over_authority", "Care over authority", "Looks after others even against authority.",
                  "someone who looks after others", "someone who defers", {"Care": 1, "SocialNorms": -1}),
            Trait("candour_over_tact", "Candour over tact", "Says what is so.", "a frank person", "a tactful one", {}),
        ]  # fmt: skip

    def vignettes(self, condition: str = "other_violate") -> list[Vignette]:
        acts = ("leaving a child out in the rain", "taking the last seat", "walking past the queue")
        return [
            Vignette(f"{name.lower()}-{i}", name, f"You see a man {act}, a matter of {name}.", condition)
            for name in FOUNDATIONS
            for i, act in enumerate(acts)
        ]

    def fixed_prompts(self) -> list[str]:
        return ["What would you do?", "Whom do you obey?"]

    def layers(self, band: tuple[float, float]) -> tuple[int, ...]:
        low, high = check_band(band)
        found = tuple(i for i in range(10) if low <= (i + 0.5) / 10 <= high)
        if not found:
            raise SettingsError(f"The band {low:g}-{high:g} holds no layer of this model: widen it.")
        return found

    # ---- steering -------------------------------------------------------------------------------------

    def steer(self, request: SteerRequest, *, session: str) -> Iterator[SteerFrame]:
        self.layers(request.band)
        with self._lock:
            self.calls.append(request)
            mine = self._newest[session] = self._newest.get(session, 0) + 1
        known = f'You wrote "{request.prompt[:120]}" :'.split()
        base = [Token(i, f"{w} ", 0.5) for i, w in enumerate(known + DULL)][: request.sample.max_new_tokens]
        steered = self._steered(known, request)
        yield SteerFrame((), (), False, False, waiting=1)
        for n in range(1, len(steered) + 1):
            time.sleep(self.delay)
            if self._newest[session] != mine:
                stopped = self._newest[session] < 0
                yield replace(self._frame(base, steered[: n - 1], request), done=True, superseded=not stopped,
                              message="stopped" if stopped else "")  # fmt: skip
                return
            yield self._frame(base, steered[:n], request)
        yield replace(self._frame(base, steered, request), done=True)

    def _steered(self, known: list[str], request: SteerRequest) -> list[Token]:
        words = known + [k if i % 5 < abs(request.alpha) * 2 else d for i, (d, k) in enumerate(zip(DULL, KIND, strict=False))]
        if abs(request.alpha) > 2.5:
            words = known + ["need"] * len(KIND)
        top = (Alternative(" <i>the</i>", 0.4), Alternative(" a", 0.2), Alternative(" no", 0.1))
        return [
            Token(i, f"{w} ", 0.6, kl=abs(request.alpha) * (i % 6) / 3, p_base=0.1, base_top=top)
            for i, w in enumerate(words)
        ][: request.sample.max_new_tokens]

    def _frame(self, base: list[Token], steered: list[Token], request: SteerRequest) -> SteerFrame:
        size = abs(request.alpha)
        broken = size > 2.5
        health = TextHealth(1.3 + size**4, 1.0 + size**4 / 1.3, 0.9 if broken else 0.08, size,
                            "broken" if broken else "degraded" if size > 1.4 else "coherent")  # fmt: skip
        return SteerFrame(tuple(base), tuple(steered), True, False, seconds=len(steered) * self.delay, health=health,
                          dose_nats=size**2, dose_fraction=0.08 * size, c_star=16.3)  # fmt: skip

    def stop(self, session: str) -> None:
        with self._lock:
            self._newest[session] = -abs(self._newest.get(session, 0)) - 1

    def profile(self, request: SteerRequest) -> tuple[Profile, Profile]:
        mass = 0.997 - 0.02 * max(0.0, abs(request.alpha) - 1.5) ** 2
        return Profile(BASE, 0.997, 1), Profile(profile_at(request.alpha), mass, 1)

    def calibration(self, trait: str, band: tuple[float, float]) -> Calibration:
        return Calibration(16.3, 1.0, 1.0, True, ((16.3, 1.0),))

    def dose(self, request: DoseRequest, *, session: str) -> Iterator[tuple[float, list[DoseRow]]]:
        rows: list[DoseRow] = []
        for n, alpha in enumerate(request.alphas, 1):
            shift = BASE["SocialNorms"] - profile_at(alpha)["SocialNorms"]
            rows.append(DoseRow(alpha, request.band, Profile(profile_at(alpha), 0.99, 1), 0.99, alpha**2, 0.1,
                                1.3 + alpha**4, shift, "coherent" if alpha < 2 else "broken"))  # fmt: skip
            yield n / len(request.alphas), list(rows)

    # ---- runs -----------------------------------------------------------------------------------------

    def launch(self, settings: HealSettings) -> str:
        run_id = f"run-{len(self._runs):03d}-s{settings.seed}"
        self._runs[run_id] = FakeRun(run_id, settings, time.time())
        return run_id

    def cancel(self, run_id: str) -> None:
        self._run(run_id).cancelled = time.time()

    def resume(self, run_id: str) -> None:
        run = self._run(run_id)
        run.first_round = self._done(run) + 1
        run.started, run.cancelled, run.status = time.time(), None, None

    def watermark(self) -> str:
        return "|".join(f"{r.run_id}:{r.status}:{r.round}:{r.stage}:{r.progress:.1f}" for r in self.runs())

    def store_message(self) -> str:
        return ""

    def runs(self) -> list[RunRow]:
        return [self._row(run) for run in reversed(self._runs.values())]

    def map(self, run_ids: list[str]) -> list[MapNode]:
        nodes: list[MapNode] = []
        for run in (self._run(run_id) for run_id in run_ids):
            nodes.append(self._node(run, 0, "base", 0.0, 0.0))
            for n in range(1, self._done(run) + 1):
                nodes.append(self._node(run, n, "steered", 1.0, 0.6 * n + 0.5))
                nodes.append(self._node(run, n, "healed", 0.0, 0.6 * n + 0.1 * run.settings.seed))
        return nodes

    def round(self, run_id: str, round: int) -> RoundDetail:
        run = self._run(run_id)
        if not 0 <= round <= self._done(run):
            raise SettingsError(f"Round {round} of {run_id} is not finished: wait for it, or open an earlier one.")
        stages = {"base": BASE, "steered": profile_at(0.6 * round + 0.5), "healed": profile_at(0.6 * round)}
        losses = tuple({"step": float(i), "total": 40.0, "loss": 2.0 / (i + 1), "nll": 1.8 / (i + 1),
                        "divergence": 0.2 * i / 40, "lr": 4e-3} for i in range(40))  # fmt: skip
        answers = tuple({"prompt": p, "base": "As we always do.", "healed": "<b>I would help</b>."}
                        for p in self.fixed_prompts())  # fmt: skip
        return RoundDetail(run_id, round, stages, dict.fromkeys(stages, 0.995), 0.89, 88, 128, 16.3,
                           {"perplexity": 1.41, "repetition": 0.08, "looping": 0.0}, answers,
                           run.settings.model_dump(mode="json"), losses)  # fmt: skip

    def completions(self, run_id: str, round: int) -> list[CompletionRow]:
        self._run(run_id)
        scores = {"perplexity_ratio": 1.2, "repetition": 0.1, "words": 12.0}
        kept = CompletionRow(run_id, round, 0, 1.0, "How do you rest?", "I would help <b>them</b> first.", True, scores, ())
        dropped = replace(kept, index=1, alpha=2.5, text="need need need", kept=False,
                          scores={**scores, "repetition": 0.9}, reasons=("repetition 0.90 above 0.30",))  # fmt: skip
        return [kept, dropped] * 6

    def close(self) -> None:
        pass

    def _run(self, run_id: str) -> FakeRun:
        if check_run_id(run_id) not in self._runs:
            raise SettingsError(f"There is no run {run_id}: choose one from the table of runs.")
        return self._runs[run_id]

    def _done(self, run: FakeRun) -> int:
        if run.example:
            return run.settings.rounds
        until = run.cancelled or time.time()
        done = run.first_round - 1 + int((until - run.started) / self.round_seconds)
        return min(done, run.settings.rounds)

    def _row(self, run: FakeRun) -> RunRow:
        s, done = run.settings, self._done(run)
        over = done >= s.rounds
        status = run.status or ("finished" if over else "cancelled" if run.cancelled else "running")
        until = run.cancelled or time.time()
        within = (until - run.started) / self.round_seconds % 1.0
        progress = 1.0 if over else min(1.0, (done + within) / s.rounds)
        left = None if status != "running" else self.round_seconds * s.rounds * (1 - progress)
        ended = None if status == "running" else run.started + self.round_seconds * s.rounds
        return RunRow(run.run_id, s.name, s.model, s.trait, s.seed, s.preset, status, s.rounds, done,  # type: ignore[arg-type]
                      "" if over else STAGES[int(within * len(STAGES))], progress, left, run.started, ended,
                      0.89 if done else None, run.example, "")  # fmt: skip

    def _node(self, run: FakeRun, round: int, stage: str, alpha: float, moved: float) -> MapNode:
        p = profile_at(moved)
        if stage == "healed":
            p["Care"] += 0.015
        return MapNode(run.run_id, "demo", run.settings.trait, run.settings.seed, round, stage, alpha,  # type: ignore[arg-type]
                       p["Care"], p["SocialNorms"], 0.99 - 0.02 * round, 98,
                       run.started + round * self.round_seconds, 0.89 if round else None, run.example)  # fmt: skip
