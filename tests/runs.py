"""Logs of made-up runs, written as a worker writes them; no model."""

from pathlib import Path
from typing import Any

from steer_heal.config import FOUNDATIONS, HealSettings, heal_settings
from steer_heal.runs.events import EventLog

PROMPTS = ("Who should decide?", "What would you do?")


def profile(social_norms: float, care: float) -> dict[str, Any]:
    rest = (1.0 - social_norms - care) / 5
    p = dict.fromkeys(FOUNDATIONS, rest) | {"SocialNorms": social_norms, "Care": care}
    score = {"foundation": "Care", "score": p, "p": p, "mass": 0.9, "prefill_nll": 0.1, "order_tv": 0.01}
    scores = [{"id": f"v{index}", **score} for index in range(2)]
    text = {"perplexity": 1.5, "perplexity_ratio": 1.1, "repetition": 0.1, "looping": 0.0}
    text |= {"relevance": 0.7, "diversity": 0.8}
    return {"p": p, "coherence": 0.99, "n_vignettes": 2, "per_vignette": scores, "text": text}


def start(log: EventLog, settings: HealSettings) -> None:
    log.append("started", None, {"settings": settings.model_dump(mode="json"), "pid": 1, "host": "here"})
    log.append("stage", 0, {"stage": "base", "n_stages": 7, "index": 0})
    log.append("profile", 0, {"stage": "base", "alpha": 0.0, **profile(0.64, 0.25)})
    log.append("answers", 0, {"prompts": PROMPTS, "texts": ["the rule", "the base answer"]})


def point(stage: str, round_: int, movement: float) -> dict:
    health = {"agreement": 0.7 - movement / 2, "relevance": 0.8, "diversity": 0.7, "facts_kept": None}
    at = {"stage": stage, "round": round_, "alpha": float(stage == "steered"), "movement": movement}
    return at | health


def play_round(log: EventLog, round_: int, *, end: bool = True) -> None:
    for index, stage in enumerate(("extract", "calibrate", "generate", "filter", "train", "evaluate"), 1):
        log.append("stage", round_, {"stage": stage, "n_stages": 7, "index": index})
        log.append("progress", round_, {"stage": stage, "done": 1, "total": 2})
    for index in range(3):
        why = [] if index else ["repeats itself"]
        made = {"index": index, "alpha": 1.5, "prompt": "p", "text": f"<b>r{round_} {index}</b>"}
        judged = {"kept": bool(index), "scores": {"repetition": 0.1}, "reasons": why}
        log.append("completion", round_, made | judged)
    for step in range(1, 3):
        losses = {"loss": 1.0 / step, "nll": 0.9, "divergence": 0.1, "barrier": 0.01, "held_out_nll": 0.95}
        log.append("step", round_, {"step": step, "total": 2, "lr": 1e-3, **losses})
    log.append("profile", round_, {"stage": "steered", "alpha": 1.0, **profile(0.52, 0.35)})
    log.append("profile", round_, {"stage": "healed", "alpha": 0.0, **profile(0.55 - round_ / 100, 0.33)})
    texts = {"texts": ["the child", f"answer {round_}"], "steered": ["steered 0", "steered 1"]}
    log.append("answers", round_, {"prompts": PROMPTS, **texts})
    if end:
        done = {
            "retention": 0.8 + round_ / 100,
            "kept": 2,
            "made": 3,
            "c_star": 16.0,
            "adapter": "adapters/1",
            "seconds": 9.0,
            "headline": {"word": "healed", "why": "retention <0.8>", "thresholds": {"mass_collapsed": 0.85}},
            "retention_interval": [0.7, 0.9],
            "path": [point("base", 0, 0.0), point("steered", 1, 0.6), point("healed", round_, 0.5)],
            "differences": {"healed-steered": [0.1, 0.05, 0.15]},
            "shift_cosine": 0.99,
            "facts_kept": 0.95,
            "neutral_kl": 0.12,
        }
        log.append("round", round_, done)


def run_folder(path: Path, settings: HealSettings) -> EventLog:
    """The log of a run that has measured base, in a folder with its settings."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(settings.model_dump_json())
    log = EventLog(path / "events.jsonl")
    start(log, settings)
    return log


def write_run(path: Path, rounds: int = 2, **settings: Any) -> Path:
    """A finished run's log at `path`."""
    with EventLog(path) as log:
        start(log, heal_settings(**{"model": "demo", "rounds": rounds, **settings}))
        for round_ in range(1, rounds + 1):
            play_round(log, round_)
        log.append("finished", None, {"reason": "all rounds done"})
    return path
