"""A Ray in this process: actors are objects, an answer is there at once. Only what `RayCluster` asks."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RaySystemError(RayError):
    pass


class ActorUnavailableError(RayError):
    pass


class Handle:
    """An actor: what it is asked it does at once, unless it was given a failure to answer with."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Answer(self.failure or getattr(self.made, name)(*given)))


class Answer:
    def __init__(self, value: Any) -> None:
        self.value = value


class FakeRay:
    exceptions = SimpleNamespace(
        RayError=RayError, RaySystemError=RaySystemError, ActorUnavailableError=ActorUnavailableError
    )

    def __init__(self) -> None:
        self.actors: dict[str, Handle] = {}
        self.up = self.answers = True
        self.reconstructed = False
        self.broken: Exception | None = None
        self.answer: Any = None
        self.options: dict[str, Any] = {}
        self.node = {"CPU": 2.0, "memory": 1e12}
        self.util = SimpleNamespace(list_named_actors=self._names)

    def init(self, _address: str, **_options: Any) -> None:
        if not self.answers:
            raise ConnectionError("ray client connection timeout")
        self.up = True

    def is_initialized(self) -> bool:
        return self.up

    def shutdown(self) -> None:
        self.up = False

    def _names(self) -> list[str]:
        if not self.answers:
            raise ConnectionError("the client is shutting down")
        return list(self.actors)

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(was_current_actor_reconstructed=self.reconstructed)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        node = {"NodeID": "1", "NodeManagerAddress": "10.0.0.1", "Resources": self.node}
        return [{**node, "Alive": True}, {**node, "Alive": False}]

    def remote(self, kind: Callable[..., Any] | None = None, **_resources: Any) -> Any:
        if kind is None:
            return self.remote

        def options(**how: Any) -> SimpleNamespace:
            self.options = how
            make = (
                self._maker(how["name"], kind) if "name" in how else lambda *given: self._done(kind, *given)
            )
            return SimpleNamespace(remote=make)

        return SimpleNamespace(options=options)

    def _done(self, task: Callable[..., Any], *given: Any) -> Answer:
        return Answer(self.broken or self.answer or task(*given))

    def _maker(self, name: str, kind: Callable[..., Any]) -> Callable[..., Handle]:
        def make(*given: Any) -> Handle:
            self.actors[name] = Handle(kind(*given))
            return self.actors[name]

        return make

    def restart(self, name: str, *given: Any) -> None:
        """As when the actor's node is lost: made anew, and it knows it."""
        self.reconstructed = True
        self.actors[name].made = type(self.actors[name].made)(name, {}, *given)
        self.reconstructed = False

    def get_actor(self, name: str) -> Handle:
        if name not in self.actors:
            raise ValueError(f"Failed to look up actor {name}")
        return self.actors[name]

    def get(self, answer: Answer) -> Any:
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def wait(self, answers: list[Any], **_how: Any) -> tuple[list[Any], list[Any]]:
        return answers, []

    def kill(self, actor: Handle) -> None:
        self.actors = {name: kept for name, kept in self.actors.items() if kept is not actor}
