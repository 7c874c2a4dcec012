"""Fake heal runs: their state is a function of the clock."""

import math
import time
from dataclasses import dataclass, replace

from steer_heal.config import HealSettings, SettingsError, check_run_id, heal_settings
from steer_heal.records import CompletionRow, ControlNode, MapNode, RoundDetail, RunRow

STAGES = ("extract", "calibrate", "generate", "filter", "train", "evaluate")
EXAMPLE = "example-care-0"
LOSSES = ("loss", "nll", "divergence")
BASE = {
    "Care": 0.25, "Fairness": 0.03, "Loyalty": 0.01, "Authority": 0.005, "Sanctity": 0.005, "Liberty": 0.05,
    "SocialNorms": 0.65,
}  # fmt: skip


def profile_at(alpha: float) -> dict[str, float]:
    """The fake model's seven foundations: SocialNorms falls and Care rises with alpha."""
    shift = 0.3 * math.tanh(0.5 * alpha)
    return {
        **BASE,
        "Care": BASE["Care"] + 0.8 * shift,
        "SocialNorms": BASE["SocialNorms"] - shift,
        "Liberty": BASE["Liberty"] + 0.2 * shift,
    }


@dataclass
class FakeRun:
    run_id: str
    settings: HealSettings
    started: float
    first_round: int = 1
    cancelled: float | None = None
    example: bool = False
    status: str | None = None
    hidden: bool = False


class FakeRuns:
    """Runs that progress, `round_seconds` a round, and one finished example."""

    def __init__(self, round_seconds: float) -> None:
        self.round_seconds = round_seconds
        example = heal_settings("quick", model="demo", rounds=2, name="Example: care over authority")
        self._deleted: dict[str, FakeRun] = {}
        self._runs = {EXAMPLE: FakeRun(EXAMPLE, example, 1_700_000_000.0, example=True)}

    def start(self, settings: HealSettings, started: float | None = None) -> str:
        run_id = f"run-{len(self._runs) + len(self._deleted):03d}-s{settings.seed}"
        self._runs[run_id] = FakeRun(run_id, settings, started or time.time())
        return run_id

    def cancel(self, run_id: str) -> None:
        run = self._run(run_id)
        run.cancelled, run.status = time.time(), None

    def pause(self, run_id: str) -> None:
        self.cancel(run_id)
        self._run(run_id).status = "paused"

    def settings(self, run_id: str) -> HealSettings:
        return self._run(run_id).settings

    def resume(self, run_id: str) -> None:
        run = self._run(run_id)
        run.first_round = self._done(run) + 1
        run.started, run.cancelled, run.status = time.time(), None, None

    def rename(self, run_id: str, name: str) -> None:
        run = self._run(run_id)
        run.settings = run.settings.model_copy(update={"name": name})

    def hide(self, run_id: str, hidden: bool = True) -> None:
        self._run(run_id).hidden = hidden

    def delete(self, run_id: str) -> None:
        if self._row(self._run(run_id)).status == "running":
            raise SettingsError(f"Run {run_id} is running: cancel it before you delete it.")
        self._deleted[run_id] = self._runs.pop(run_id)

    def restore(self, run_id: str) -> None:
        self._runs[run_id] = self._deleted.pop(run_id)

    def watermark(self) -> str:
        return "|".join(
            f"{r.run_id}:{r.status}:{r.round}:{r.stage}:{r.progress:.1f}:{r.name}:{r.hidden}"
            for r in self.rows()
        )

    def message(self) -> str:
        return ""

    def rows(self) -> list[RunRow]:
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
            raise SettingsError(
                f"Round {round} of {run_id} is not finished: wait for it, or open an earlier one."
            )
        stages = {"base": BASE, "steered": profile_at(0.6 * round + 0.5), "healed": profile_at(0.6 * round)}
        losses = tuple({"step": float(i), **dict.fromkeys(LOSSES, 2.0 / (i + 1))} for i in range(40))
        answers = tuple(
            {"prompt": p, "base": "As we always do.", "healed": "<b>I would help</b>."}
            for p in ("What would you do?", "Whom do you obey?")
        )
        text = {"perplexity": 1.41, "repetition": 0.08, "looping": 0.0}
        return RoundDetail(
            run_id, round, stages, dict.fromkeys(stages, 0.995), 0.89, 88, 128, 16.3, text, answers,
            run.settings.model_dump(mode="json"), losses,
        )  # fmt: skip

    def controls(self, run_ids: list[str]) -> list[ControlNode]:
        care, norms = BASE["Care"], BASE["SocialNorms"]
        moved = [("random", 0.02 * i - 0.03, 0.03 - 0.015 * i) for i in range(4)] + [("persona", 0.2, -0.3)]
        return [
            ControlNode(
                run_id, kind, care + x, norms + y, BASE | {"Care": care + x, "SocialNorms": norms + y}
            )
            for run_id in run_ids
            for kind, x, y in moved
        ]

    def completions(self, run_id: str, round: int) -> list[CompletionRow]:
        self._run(run_id)
        scores = {"perplexity_ratio": 1.2, "repetition": 0.1, "words": 12.0}
        kept = CompletionRow(
            run_id, round, 0, 1.0, "How do you rest?", "I would help <b>them</b> first.", True, scores, ()
        )
        said = {"text": "need need need", "reasons": ("repetition 0.90 above 0.30",)}
        dropped = replace(kept, index=1, alpha=2.5, kept=False, scores={**scores, "repetition": 0.9}, **said)
        return [kept, dropped] * 6

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
        counted = (int(16 * within), 16.0, 2.0) if status == "running" else ()
        return RunRow(
            run.run_id, s.name, s.model, s.trait, s.seed, s.preset, status, s.rounds, done,
            "" if over else STAGES[int(within * len(STAGES))], progress, run.started, ended,
            0.89 if done else None, run.example, "", run.hidden, left, *counted, mix=s.mix,
        )  # fmt: skip

    def _node(self, run: FakeRun, round: int, stage: str, alpha: float, moved: float) -> MapNode:
        p = profile_at(moved)
        if stage == "healed":
            p["Care"] += 0.015
        at, retention = run.started + round * self.round_seconds, 0.89 if round else None
        return MapNode(
            run.run_id, run.settings.model, run.settings.trait, run.settings.seed, round, stage, alpha,
            p["Care"], p["SocialNorms"], 0.99 - 0.02 * round, 98, at, retention, run.example, profile=p,
            mix=run.settings.mix,
        )  # fmt: skip
