"""Sessions that all ask while the model is held, so that they begin together once it is let go."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from steer_heal.config import SampleSettings, SettingsError, SteerRequest, TalkRequest, build
from steer_heal.engine import Engine
from steer_heal.records import SteerFrame, TalkFrame

PATIENCE_S = 60.0
BAND = (0.25, 0.75)


def request(prompt: str = "What is right?", alpha: float = 1.0, n: int = 12, **sample: Any) -> SteerRequest:
    """One steered answer of n tokens at most."""
    sampled = build(SampleSettings, max_new_tokens=n, **sample)
    return build(SteerRequest, prompt=prompt, alpha=alpha, band=BAND, sample=sampled)


def ids(frame: SteerFrame | TalkFrame) -> tuple[list[int], ...]:
    """The tokens of the base and of the steered answer, or of each one in a conversation."""
    if isinstance(frame, SteerFrame):
        texts = [frame.base, frame.steered]
    else:
        texts = [one.tokens for some in frame.voices for one in some]
    return tuple([token.id for token in text] for text in texts)


Asked = SteerRequest | TalkRequest | Callable[[], object]
"""What a session asks of the engine, or what it calls instead."""


class Crowd:
    """What each session saw, and what was raised to it."""

    def __init__(self, engine: Engine, asked: Mapping[str, Asked]) -> None:
        self.engine, self.asked = engine, asked
        self.frames: dict[str, list[Any]] = {name: [] for name in asked}
        self.errors: dict[str, str] = {}
        self._held, self._go = threading.Event(), threading.Event()

    def _hold(self, _request: object) -> Iterator[None]:
        self._held.set()
        self._go.wait(PATIENCE_S)
        yield

    def _ask(self, name: str) -> None:
        try:
            asked = self.asked[name]
            if isinstance(asked, SteerRequest):
                self.frames[name].extend(self.engine.steer(asked, session=name))
            elif isinstance(asked, TalkRequest):
                self.frames[name].extend(self.engine.talk(asked, session=name))
            else:
                asked()
        except (SettingsError, RuntimeError) as error:
            self.errors[name] = str(error)

    def run(self) -> dict[str, tuple[list[int], ...]]:
        """`ids` by session; the model is let go when all wait for it."""
        scheduler = self.engine.scheduler
        holder = threading.Thread(target=lambda: list(scheduler.run("hold", self._hold, brief=True)))
        threads = [threading.Thread(target=self._ask, args=(name,)) for name in self.asked]
        holder.start()
        assert self._held.wait(PATIENCE_S)
        for thread in threads:
            thread.start()
        assert scheduler.has(len(threads) + 1, PATIENCE_S)
        self._go.set()
        for thread in (holder, *threads):
            thread.join(PATIENCE_S)
        return {name: ids(frames[-1]) for name, frames in self.frames.items() if frames}
