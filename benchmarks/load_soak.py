"""An hour of twenty people in some minutes: `python -m benchmarks.load_soak [--minutes 9] [--json F]`.

The real app with the bundled model, and what twenty people do to it in an hour, each at a steady pace: 120
answers, 2,400 looks of an open page, 3 reloads, a sweep, and now and then a heal run launched. First as many
sessions are opened as the app keeps. Resident memory of app and workers is sampled every few seconds; the
slope after the first third is told with a 95 % interval that allows for neighbouring samples being alike.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.load import PROMPTS, TRAIT, Session, app, ask, call
from components.server import MAX_SESSIONS

PEOPLE = 20
AN_HOUR = {"answer": 120, "look": 2400, "reload": 3, "sweep": 1}
"""How often each person does what."""
RUNS = 4
EVERY_S = 3.0
WARM = 1 / 3
SMALL = {
    "data": {"n_answers": 32, "n_plain": 0, "min_kept": 2, "max_new_tokens": 12},
    "filter": {
        "max_perplexity_ratio": 1e6,
        "min_relevance_ratio": -1e6,
        "max_repetition": 1.0,
        "min_variety": 0.0,
        "min_words": 1,
    },
    "train": {"epochs": 1},
    "evaluate": {"n_vignettes": 14, "n_answers": 2},
}


@dataclass
class Person:
    """Somebody at an open page, and what was done there."""

    client: httpx.Client
    number: int
    session: Session = field(default_factory=Session)
    sweeps: Session = field(default_factory=Session)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def answer(self) -> None:
        ask(
            self.client,
            self.session,
            self.done["answer"],
            PROMPTS[(7 * self.number + self.done["answer"]) % 98],
        )
        self.errors += self.session.errors
        self.session.errors = []

    def look(self) -> None:
        self.client.get("/ui/mark").raise_for_status()

    def reload(self) -> None:
        for path in ("/", "/config", "/ui/page.js"):
            self.client.get(path).raise_for_status()
        with httpx.Client(base_url=self.client.base_url, timeout=300) as fresh:
            list(call(fresh, "runs", session=Session().name))

    def sweep(self) -> None:
        asked = ([0.0, 1.0, 4.0], TRAIT, 0.4, 0.6, 7, 8, 0, "mean_diff")
        list(call(self.client, "sweep", *asked, session=self.sweeps.name))

    def acts(self) -> dict[str, Callable[[], None]]:
        return {"answer": self.answer, "look": self.look, "reload": self.reload, "sweep": self.sweep}


def live(person: Person, what: str, times: int, seconds: float, ended: threading.Event) -> None:
    """Does one thing so many times, spread evenly; what cannot keep pace is done as fast as it can."""
    pause = seconds / times
    began = time.monotonic() + pause * (0.1 + 0.8 * person.number / PEOPLE)
    for turn in range(times):
        if ended.wait(max(0.0, began + turn * pause - time.monotonic())):
            return
        try:
            person.acts()[what]()
            person.done[what] += 1
        except (httpx.HTTPError, RuntimeError) as error:
            person.errors.append(f"{what}: {type(error).__name__} {error}"[:200])


def launching(url: str, seconds: float, ended: threading.Event, launched: list[str]) -> None:
    """A heal run now and then; they are queued one behind the other."""
    with httpx.Client(base_url=url, timeout=300) as client:
        for turn in range(RUNS):
            launched += call(client, "launch", TRAIT, 2, "quick", turn, f"soak {turn}", SMALL, session="runs")
            if ended.wait(seconds / RUNS):
                return


def memory(process: psutil.Process) -> tuple[float, float]:
    """MB of the app and of its workers."""
    workers = 0
    for child in process.children(recursive=True):
        try:
            workers += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return process.memory_info().rss / 1e6, workers / 1e6


def slope(hours: np.ndarray, mb: np.ndarray) -> tuple[float, float]:
    """MB an hour by least squares, and half its 95 % interval.

    The error counts n (1 - r) / (1 + r) samples, r the residuals' correlation from one to the next.
    """
    centred = hours - hours.mean()
    found = float((centred * mb).sum() / (centred**2).sum())
    rest = mb - mb.mean() - found * centred
    variance = float((rest**2).sum())
    r = max(0.0, float((rest[1:] * rest[:-1]).sum()) / variance) if variance else 0.0
    n = max(3.0, len(mb) * (1 - r) / (1 + r))
    return found, 1.96 * math.sqrt(variance / (n - 2) / float((centred**2).sum()) * len(mb) / n)


def soak(url: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    """Everybody at once until the time is over; what was done, what went wrong, and memory over it."""
    ended, launched = threading.Event(), list[str]()
    people = [Person(httpx.Client(base_url=url, timeout=300), number) for number in range(PEOPLE)]
    threads = [
        threading.Thread(target=live, args=(person, what, times, seconds, ended))
        for person in people
        for what, times in AN_HOUR.items()
    ]
    threads.append(threading.Thread(target=launching, args=(url, seconds, ended, launched)))
    began, samples = time.monotonic(), list[tuple[float, float, float]]()
    for thread in threads:
        thread.start()
    while (passed := time.monotonic() - began) < seconds:
        samples.append((passed, *memory(process)))
        time.sleep(EVERY_S)
    ended.set()
    for thread in threads:
        thread.join(120)
    done = sum((person.done for person in people), Counter({"run": len(launched)}))
    return {
        "seconds": time.monotonic() - began,
        "done": dict(done),
        "errors": [error for person in people for error in person.errors],
        "samples": samples,
    }


def report(found: dict[str, Any]) -> dict[str, Any]:
    """Prints the table; adds the slopes, in MB for each hour that was lived through."""
    samples = np.array(found["samples"])
    lived = samples[:, 0] / found["seconds"]
    print("| share of the hour | app, MB | workers, MB |\n| --- | --- | --- |")
    for part in range(9):
        here = (lived >= part / 9) & (lived < (part + 1) / 9)
        print(f"| {(part + 1) / 9:.2f} | {samples[here, 1].mean():.1f} | {samples[here, 2].mean():.1f} |")
    later = lived >= WARM
    growth, half = slope(lived[later], samples[later, 1])
    print(f"{found['seconds'] / 60:.1f} minutes; done: {found['done']}; errors: {len(found['errors'])}")
    between = f"{growth - half:+.1f} to {growth + half:+.1f}"
    print(f"app after the first third: {growth:+.1f} MB an hour (95 %: {between})")
    print(*found["errors"][:3], sep="\n")
    return {**found, "mb_an_hour": growth, "half_interval": half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, app(Path(folder)) as (url, process):
        with httpx.Client(base_url=url, timeout=300) as client:
            for _ in range(MAX_SESSIONS):
                list(call(client, "runs", session=Session().name))
        found = report(soak(url, process, args.minutes * 60))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
