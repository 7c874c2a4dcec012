"""Runs on a Ray cluster: each an actor that works the run's folder on some node. Its log and its files come
back, so that the folder here holds everything. Ray places the actors and makes lost ones anew."""

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import Timeout

from steer_heal import sources
from steer_heal.config import HealSettings, SettingsError, stored_settings
from steer_heal.runs import events
from steer_heal.runs.events import FINAL, EventLog
from steer_heal.runs.jobs.folder import RunFolder
from steer_heal.runs.jobs.launcher import About, JobState
from steer_heal.runs.jobs.local import LocalProcesses
from steer_heal.runs.jobs.processes import CLUSTER, Running
from steer_heal.runs.validate import check, run_bytes
from steer_heal.whole_file import write_whole

PORT = 10001
"""Where a head listens unless it is told otherwise."""
ANSWER_S = 5.0
AGAIN_S = 15.0
"""How long after a cluster did not answer it is asked again."""
JOINS = 5
"""How often, a second apart, a head is asked for the process that serves this client."""
WAIT_S = 0.3
LAST = 0
RESTARTS = 3
"""How often Ray makes a run's actor anew, on this node or another; then the run is interrupted."""
_PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Heard:
    """What is new of a run: whole lines of its log, and by round the files of those that end in them, under
    `LAST` what is left at its end. `error`: why its worker ended, where it did so without a last word."""

    lines: bytes
    files: dict[int, dict[str, bytes]]
    error: str = ""


class Remote:
    """On a node: one run's worker, in a folder of its own. One that Ray made anew is empty, and says so: what
    it was made with may be old by then."""

    def __init__(self, run_id: str, files: dict[str, bytes]) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="steer-heal-"))
        self._pool = ThreadPoolExecutor(1)
        self._work: Any = None
        if not import_module("ray").get_runtime_context().was_current_actor_reconstructed:
            self.begin(run_id, files)

    def begin(self, run_id: str, files: dict[str, bytes]) -> None:
        """Works the run from where its files are; once."""
        if self._work is not None:
            return
        self._folder = RunFolder(self._home / "runs" / run_id)
        for name, body in files.items():
            path = self._folder.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        self._work = self._pool.submit(self._worked)

    def _worked(self) -> None:
        with open(self._folder.worker_log, "a", encoding="utf-8") as out, redirect_stderr(out):
            import_module("steer_heal.runs.worker").work(self._folder, threading.Event())

    def look(self, offset: int, cancel: bool) -> Heard | None:
        """What is new after byte `offset` of the log; None of an empty one. With `cancel` it is to end."""
        if self._work is None:
            return None
        if cancel:
            self._folder.ask("cancel")
        failed = self._work.exception() if self._work.done() else None
        chunk = events.read(self._folder.log, offset)
        with open(self._folder.log, "rb") as file:
            file.seek(offset)
            lines = file.read(chunk.offset - offset)
        home, files = self._folder.path, {}
        for event in chunk.events:
            if event.kind == "round":
                adapter = home / "adapters" / f"round-{event.round}"
                kept = [*home.glob(f"vectors/round-{event.round}.*"), *adapter.rglob("*")]
                files[event.round or LAST] = _read(home, kept)
            elif event.kind in FINAL:
                files[LAST] = _read(home, [self._folder.worker_log])
        return Heard(lines, files, "" if failed is None else f"{type(failed).__name__}: {failed}")

    def end(self) -> None:
        """Leaves nothing on the node."""
        shutil.rmtree(self._home, ignore_errors=True)


def lacks(wanted: list[str]) -> list[str]:
    """On a node: of each run, whose settings are given as JSON, why it cannot be there; "" where it can."""
    return [_lacks(stored_settings(text)[0]) for text in wanted]


def _lacks(settings: HealSettings) -> str:
    try:
        check(settings)
        if sources.here(sources.find(settings.model)) is None:
            get = f"python -m steer_heal models get {settings.model}"
            return f"the model {settings.model} is not there, run `{get}` there."
    except SettingsError as error:
        return str(error)
    return ""


class Line:
    """From here to one run's actor. While it is open nobody else works in the run's folder."""

    def __init__(self, folder: RunFolder) -> None:
        folder.lock.acquire(blocking=False)
        self.folder, self.log = folder, EventLog(folder.log)
        self.look: Any = None
        self.since = 0.0
        self.begun = False

    def close(self) -> None:
        self.log.close()
        self.folder.lock.release()

    def files(self) -> dict[str, bytes]:
        """All that the run needs to go on."""
        folder = self.folder.path
        made = [path for part in ("vectors", "adapters") for path in (folder / part).rglob("*")]
        return _read(folder, [folder / "config.json", self.folder.log, *made])

    def take(self, heard: Heard) -> str:
        """Files first, then the lines that speak of them; gives the kind of the last. Where a pause is asked
        for, what follows a round is left out. Raises: `OSError`, and then the log is as it was."""
        kept: list[bytes] = []
        kind, files = "", {}
        for line in heard.lines.splitlines(keepends=True):
            kept.append(line)
            if (event := events.parse(line)) is None:
                continue
            kind = event.kind
            if kind == "round" or kind in FINAL:
                files |= heard.files.get(event.round or LAST, {})
            if kind == "round" and self.folder.asked("pause"):
                break
        for name, body in files.items():
            path = self.folder.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, body)
        self.log.take(b"".join(kept))
        if files:
            self.log.sync()
        return kind


class RayCluster(LocalProcesses):
    """As `LocalProcesses`, of which it has the folder, but what it starts runs on the cluster at `address`,
    `ray://HOST:PORT`; each run has `cpus` CPUs, the memory that `run_bytes` tells and, where the cluster has
    some, that many or that share of `gpus`.

    A run goes on there while nobody listens, and what it did is heard later. Asked to pause, it leaves its
    place after its round. Raises `SettingsError` where Ray is not installed, nobody answers, or the versions
    differ.
    """

    def __init__(self, runs_dir: str | Path, address: str, *, cpus: int = 1, gpus: float = 1.0) -> None:
        if cpus < 1 or not (0 <= gpus <= 1 or (gpus > 0 and gpus % 1 == 0)):
            raise SettingsError("A run has 1 or more CPUs, and a share of one GPU or several whole ones.")
        super().__init__(runs_dir, at_once=0)
        self.address, self._cpus, self._gpus = address, cpus, gpus
        self._ray: Any = None
        self._lines: dict[str, Line] = {}
        self._again, self._trouble = 0.0, ""
        self._talking = threading.RLock()  # a page asks from many threads
        self._connect()
        self.advance()

    def create(
        self, settings: HealSettings, *, worker: Running | None = None, about: About | None = None
    ) -> RunFolder:
        """A run that is the cluster's from the first."""
        folder = super().create(settings, worker=worker or self._here(), about=about)
        _beat(folder)
        return folder

    def reopen(self, run_id: str, *, worker: Running | None = None) -> RunFolder:
        """The same of one that ended early, wherever it was. Errors: `SettingsError` also while the cluster
        does not answer: the run may be at work there, and goes on when it does."""
        if self._trouble:
            raise SettingsError(self._trouble)
        folder = super().reopen(run_id, worker=worker or self._here())
        _beat(folder)
        return folder

    def poll(self, run_id: str) -> JobState:
        """How the run stands, as far as it was heard."""
        state, line = super().poll(run_id), self._lines.get(run_id)
        if self._trouble and state.status == "running" and self._is_ours(self.folder(run_id)):
            return JobState("interrupted", self._trouble)
        if line is not None and not line.begun and state.status == "running" and not state.message:
            return JobState("running", f"waits for a place on {self.address}")
        return state

    def places(self) -> int:
        """How many runs the cluster has room for."""
        with self._asking():
            there = self._ray.cluster_resources()
        by_cpu, gpus = int(there.get("CPU", 0) // self._cpus), there.get("GPU")
        return min(by_cpu, int(gpus / self._gpus)) if gpus and self._gpus else by_cpu

    def unfit(self, wanted: Sequence[HealSettings]) -> list[str]:
        """Where this machine, which reckons the memory of runs, or a node lacks what a run needs, or no node
        is large enough. Errors: `SettingsError` where a node lacks what the project needs."""
        node_of = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        texts = [settings.model_dump_json() for settings in wanted]
        with self._asking():
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            ask = self._ray.remote(num_cpus=0)(lacks)
            asked = [
                ask.options(scheduling_strategy=node_of(node["NodeID"], soft=False)).remote(texts)
                for node in nodes
            ]
            found = {"This machine": lacks(texts)}
            for node, answer in zip(nodes, asked, strict=True):
                where = f"The node {node['NodeManagerAddress']} of {self.address}"
                found[where] = self._answered(where, answer)
        lacking = [
            next(
                (f"{where} cannot run it: {said[place]}" for where, said in found.items() if said[place]), ""
            )
            for place in range(len(wanted))
        ]
        return [said or self._too_large(one, nodes) for said, one in zip(lacking, wanted, strict=True)]

    def _answered(self, where: str, answer: Any) -> list[str]:
        try:
            return self._ray.get(answer)
        except self._ray.exceptions.RaySystemError:
            raise
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1]
            raise SettingsError(
                f"{where} cannot run this ({said}): install steer-heal[ray] there."
            ) from error

    def _too_large(self, settings: HealSettings, nodes: Sequence[dict[str, Any]]) -> str:
        each = self._each(settings, any(node["Resources"].get("GPU") for node in nodes))
        if any(all(node["Resources"].get(name, 0) >= n for name, n in each.items()) for node in nodes):
            return ""
        asked = f"{each['CPU']} CPUs, {each['GPU']:g} GPUs and {each['memory'] / 1e9:.1f} GB of memory"
        return (
            f"No node of {self.address} has the {asked} that it needs: lower train.batch_size or "
            "data.max_new_tokens, or start a larger node there."
        )

    def _each(self, settings: HealSettings, with_gpus: bool) -> dict[str, float]:
        """What a run takes of a node, by Ray's names."""
        gpus = self._gpus if with_gpus else 0.0
        return {"CPU": self._cpus, "GPU": gpus, "memory": run_bytes(settings) or 0}

    def advance(self) -> None:
        """Hears of every run of ours, and starts what is not on the cluster yet. Call it often."""
        super().advance()
        with self._asking():
            self._listen()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Connected, and no other thread speaks meanwhile. Errors: `SettingsError` where nobody answers."""
        with self._talking:
            try:
                self._connect()
                yield
            except (ConnectionError, self._ray.exceptions.RaySystemError, TimeoutError) as error:
                said = f"The cluster at {self.address} does not answer: its runs are heard of when it does."
                self._again, self._trouble = time.monotonic() + AGAIN_S, said
                self.close()
                raise SettingsError(said) from error

    def close(self) -> None:
        """Listens no more; the runs go on."""
        with self._talking:
            for line in self._lines.values():
                line.close()
            self._lines.clear()
            self._ray.shutdown()

    def _here(self) -> Running:
        return Running(os.getpid(), 0.0, self.address)

    def _is_ours(self, folder: RunFolder) -> bool:
        process = folder.process()
        return process is not None and process.host == self.address

    def _connect(self) -> None:
        if self._ray is not None and self._ray.is_initialized():
            return
        if time.monotonic() < self._again:
            raise SettingsError(self._trouble)
        try:
            self._ray = import_module("ray")
        except ImportError as error:
            raise SettingsError(
                "A cluster needs Ray, which is not installed: pip install 'steer-heal[ray]'."
            ) from error
        _reach(self.address)
        join = partial(
            self._ray.init, self.address, namespace=f"steer-heal {socket.gethostname()} {self.runs_dir}",
            runtime_env={"py_modules": [str(_PACKAGE)]}, log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        try:
            self._join(join)
        except ConnectionError as error:
            raise _nobody(self.address) from error
        except RuntimeError as error:
            said = " ".join(str(error).split())
            raise SettingsError(
                f"The cluster at {self.address} takes no work from here ({said[:400]}): use one Ray and one "
                "Python on both sides."
            ) from error
        self._trouble = ""

    def _join(self, join: Callable[[], Any]) -> None:
        """The head makes a process for each client, which a busy machine sometimes does not let start."""
        for _ in range(JOINS - 1):
            with suppress(ConnectionAbortedError):
                join()
                return
            time.sleep(1.0)
        join()

    def _listen(self) -> None:
        ours = {
            run_id: folder
            for run_id in self.runs()
            if self._ended(folder := RunFolder(self.runs_dir / run_id)) is None and self._is_ours(folder)
        }
        for name in self._ray.util.list_named_actors():
            if name not in ours:
                self._dismiss(name)
        for run_id, folder in ours.items():
            _beat(folder)
            if folder.asked("resting") and folder.asked("pause"):
                continue
            folder.rest(False)
            with suppress(Timeout):
                line = self._lines.get(run_id) or Line(folder)
                self._lines[run_id] = line
                self._ask(line)
        looks = [line.look for line in self._lines.values() if line.look is not None]
        ready = self._ray.wait(looks, num_returns=len(looks), timeout=WAIT_S)[0] if looks else []
        for line in list(self._lines.values()):
            if line.look in ready:
                self._hear(line)
            elif line.folder.asked("cancel") and time.monotonic() > line.since + ANSWER_S:
                line.log.append("cancelled", None, {"message": "cancelled before it had a place"})
                self._leave(line)

    def _ask(self, line: Line) -> None:
        if line.look is None:
            run_id = line.folder.run_id
            try:
                actor = self._ray.get_actor(run_id)
            except ValueError:
                with_gpus = bool(self._ray.cluster_resources().get("GPU"))
                each = self._each(line.folder.settings(), with_gpus)
                actor = self._ray.remote(Remote).options(
                    name=run_id, lifetime="detached", num_cpus=each["CPU"], num_gpus=each["GPU"],
                    memory=each["memory"], max_restarts=RESTARTS, max_task_retries=-1,
                ).remote(run_id, line.files())  # fmt: skip
            line.look = actor.look.remote(line.log.size, line.folder.asked("cancel"))
            line.since = time.monotonic()

    def _hear(self, line: Line) -> None:
        """What the actor answered: begins an empty one, takes what is new, dismisses one that has ended."""
        look, line.look = line.look, None
        run_id, failures = line.folder.run_id, self._ray.exceptions
        try:
            heard: Heard | None = self._ray.get(look)
            if heard is None:
                self._ray.get_actor(run_id).begin.remote(run_id, line.files())
                return
        except (failures.ActorUnavailableError, ValueError):
            return  # gone for a moment, or since it answered
        except failures.RaySystemError:
            raise
        except failures.RayError as error:
            said = f"Its place on {self.address} was lost for good ({' '.join(str(error).split())[:300]})."
            line.log.append("interrupted", None, {"message": f"{said} Resume it."})
            return self._leave(line)
        line.begun = True
        try:
            kind = line.take(heard)
        except OSError:
            return  # a full disk, which the run's state tells: asked again, the actor says the same again
        if heard.error and kind not in FINAL:
            kind = line.log.append("failed", None, {"message": heard.error}).kind
        if kind == "round" and line.folder.asked("pause"):
            line.log.append("paused", None, {})
            line.folder.rest(True)
        elif kind not in FINAL:
            return
        self._leave(line)

    def _leave(self, line: Line) -> None:
        self._lines.pop(line.folder.run_id).close()
        self._dismiss(line.folder.run_id)

    def _dismiss(self, run_id: str) -> None:
        """Frees a run's place on the cluster."""
        with suppress(ValueError):  # it is gone already
            actor = self._ray.get_actor(run_id)
            self._ray.wait([actor.end.remote()], timeout=1.0)
            self._ray.kill(actor)


def _read(folder: Path, files: Iterable[Path]) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def _beat(folder: RunFolder) -> None:
    with suppress(OSError):
        folder.write("heartbeat", json.dumps({}))


def _reach(address: str) -> None:
    """`SettingsError` unless somebody listens at the address, which is told in no time."""
    try:
        place = urlsplit(address)
        host, port = place.hostname, place.port or PORT
    except ValueError:
        host = None
    if not address.startswith(CLUSTER) or not host:
        raise SettingsError(f"{address!r} is no cluster: give local, or ray://HOST:{PORT}.")
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError as error:
        raise _nobody(address) from error


def _nobody(address: str) -> SettingsError:
    return SettingsError(
        f"Nobody answers at {address}: check the address, or start a head there with `ray start --head`."
    )
