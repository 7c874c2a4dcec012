"""A cluster that cannot be had: one sentence each. Without Ray; with a real one, see tests/loop."""

import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from steer_heal.config import SettingsError, heal_settings
from steer_heal.heal.memory import run_bytes
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses, RunFolder, Running
from steer_heal.runs.jobs.ray_cluster import RayCluster
from tests.fake_ray import FakeRay, RayError
from tests.jobs import until
from tests.runs import play_round, start

GET = "the model some/where is not there, run `python -m steer_heal models get some/where` there."


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(folder: Path, address: str) -> str:
    with pytest.raises(SettingsError) as refused:
        RayCluster(folder / "runs", address)
    assert not (folder / "runs").exists()
    return str(refused.value)


def test_without_ray_it_says_what_to_install(tmp_path, port, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'steer-heal[ray]'" in refusal(tmp_path, f"ray://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "ray://", "ray://host:port", "127.0.0.1:6379"])
def test_what_is_no_address_is_refused(tmp_path, address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert "is no cluster" in refusal(tmp_path, address)


def test_an_address_that_nobody_answers_at_is_said_at_once(tmp_path, port, monkeypatch):
    def silent(*_args: object, **_options: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=silent))
    assert "Nobody answers at" in refusal(tmp_path, f"ray://127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    assert "Nobody answers at" in refusal(tmp_path, f"ray://127.0.0.1:{closed}")


def test_a_client_that_does_not_start_is_asked_for_again_and_versions_are_named(tmp_path, port, monkeypatch):
    asked: list[int] = []

    def failing(*_args: object, **_options: object) -> None:
        asked.append(1)
        mismatch = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n")
        raise ConnectionAbortedError if len(asked) < 3 else mismatch

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=failing))
    monkeypatch.setattr("steer_heal.runs.jobs.ray_cluster.time.sleep", lambda _seconds: None)
    said = refusal(tmp_path, f"ray://127.0.0.1:{port}")
    assert "Ray: 2.59.0" in said
    assert "\n" not in said


def test_a_cluster_s_run_that_nobody_listens_to_is_no_lost_process_and_takes_no_place(jobs):
    folder = jobs.create(heal_settings(model="demo"), worker=Running(os.getpid(), 0.0, "ray://host:10001"))
    assert "sweep resume" in jobs.poll(folder.run_id).message
    folder.beat()
    state = jobs.poll(folder.run_id)
    assert (state.status, state.pid) == ("running", None)


@pytest.fixture
def ray(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_given, **_how: None)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", affinity)
    return made


@pytest.fixture
def may_end(monkeypatch):
    """Workers without a model, on a thread: a round, and when they may the other one and the end."""
    may = Event()

    def work(folder: RunFolder, _stopped: Event) -> None:
        done = folder.last_round()
        with EventLog(folder.log) as log:
            log.append("resumed", None, {"round": done}) if done else start(log, folder.settings())
            for round_ in range(done + 1, 3):
                adapter = folder.path / "adapters" / f"round-{round_}"
                adapter.mkdir(parents=True)
                (adapter / "adapter_model.safetensors").write_bytes(b"adapter %d" % round_)
                play_round(log, round_)
                while round_ == 1 and not may.is_set():
                    if folder.asked("cancel"):
                        log.append("cancelled", None, {"message": "when asked"})
                        return
                    may.wait(0.01)
            log.append("finished", None, {"reason": "all rounds done"})

    monkeypatch.setitem(sys.modules, "steer_heal.runs.worker", SimpleNamespace(work=work))
    yield may
    may.set()


@pytest.fixture
def cluster(tmp_path, port, ray, may_end):
    made = RayCluster(tmp_path / "runs", f"ray://127.0.0.1:{port}")
    yield made
    made.close()


def test_a_node_without_the_model_or_what_the_project_needs_is_named_before_the_first_cell(
    cluster, ray, monkeypatch
):
    demo, missing = heal_settings(model="demo"), heal_settings(model="some/where")
    assert cluster.unfit([demo]) == [""]
    said = cluster.unfit([missing, demo])
    assert said == ["This machine cannot run it: " + GET, ""]
    with monkeypatch.context() as patch:
        patch.setattr("steer_heal.runs.jobs.ray_cluster.lacks", lambda texts: [""] * len(texts))
        ray.answer = [GET, ""]
        said = cluster.unfit([missing, demo])
    assert re.fullmatch(rf"The node 10\.0\.0\.1 of ray://\S+ cannot run it: {re.escape(GET)}", said[0])
    ray.broken = RayError("Traceback:\nModuleNotFoundError: No module named 'torch'")
    with pytest.raises(SettingsError, match=r"No module named 'torch'\): install steer-heal\[ray\] there"):
        cluster.unfit([demo])
    assert cluster.runs() == []


def test_ray_keeps_the_memory_that_a_run_is_reckoned_to_need_and_too_much_is_refused(
    cluster, ray, monkeypatch, may_end
):
    settings = heal_settings(model="demo", rounds=2)
    begun(cluster)
    asked = ray.options["memory"]
    assert asked == run_bytes(settings)
    more = settings.model_copy(update={"train": settings.train.model_copy(update={"batch_size": 32})})
    monkeypatch.setitem(ray.node, "memory", float(asked))
    said = cluster.unfit([settings, more])
    assert said[0] == ""
    assert re.search(r"No node of ray://\S+ has the 1 CPUs, 0 GPUs and \d\.\d GB of memory", said[1])
    assert "lower train.batch_size" in said[1]


def test_a_place_is_cpus_and_where_there_are_some_gpus(tmp_path, port, ray, monkeypatch):
    def places(there: dict[str, float], **each: float) -> int:
        monkeypatch.setattr(ray, "cluster_resources", lambda: there)
        made = RayCluster(tmp_path / "runs", f"ray://127.0.0.1:{port}", **each)
        made.close()
        return made.places()

    assert places({"CPU": 9.0}) == 9
    assert places({"CPU": 9.0}, cpus=4) == 2
    assert places({"CPU": 9.0, "GPU": 2.0}) == 2
    assert places({"CPU": 9.0, "GPU": 2.0}, gpus=0.5) == 4


@pytest.mark.parametrize("each", [{"cpus": 0}, {"gpus": -1.0}, {"gpus": 1.5}, {"gpus": float("nan")}])
def test_a_place_that_cannot_be_is_refused(tmp_path, port, ray, each):
    with pytest.raises(SettingsError, match="1 or more CPUs"):
        RayCluster(tmp_path / "runs", f"ray://127.0.0.1:{port}", **each)


def heard(cluster: RayCluster, run_id: str, kind: str) -> None:
    """Listens until the newest event is of that kind."""

    def listen() -> bool:
        cluster.advance()
        return cluster.events(run_id).events[-1].kind == kind

    until(listen)


def begun(cluster: RayCluster) -> str:
    """A run whose first round was heard."""
    run_id = cluster.start(heal_settings(model="demo", rounds=2))
    heard(cluster, run_id, "round")
    return run_id


def whole(cluster: RayCluster, run_id: str) -> list[str]:
    """The kinds of a log without gaps, of a run whose rounds' files are here."""
    log = cluster.events(run_id).events
    assert [event.seq for event in log] == list(range(len(log)))
    for round_ in range(1, cluster.folder(run_id).last_round() + 1):
        adapter = cluster.folder(run_id).path / "adapters" / f"round-{round_}" / "adapter_model.safetensors"
        assert adapter.read_bytes() == b"adapter %d" % round_
    return [event.kind for event in log]


def test_what_a_run_writes_comes_back_and_its_place_is_freed(cluster, ray, may_end):
    run_id = begun(cluster)
    assert cluster.poll(run_id).status == "running"
    assert whole(cluster, run_id)[-1] == "round"
    may_end.set()
    heard(cluster, run_id, "finished")
    assert whole(cluster, run_id).count("round") == 2
    assert cluster.poll(run_id).status == "finished"
    assert cluster.folder(run_id).worker_log.exists()
    assert ray.actors == {}


def test_a_run_whose_node_is_lost_goes_on_from_what_came_back(cluster, ray, may_end):
    run_id = begun(cluster)
    ray.restart(run_id)
    may_end.set()
    heard(cluster, run_id, "finished")
    kinds = whole(cluster, run_id)
    assert (kinds.count("started"), kinds.count("resumed"), kinds.count("round")) == (1, 1, 2)


def test_a_run_goes_on_while_nobody_listens(cluster, ray, may_end, tmp_path):
    run_id = begun(cluster)
    cluster.close()
    may_end.set()
    os.utime(cluster.folder(run_id).path / "heartbeat", (0, 0))
    assert "sweep resume" in LocalProcesses(cluster.runs_dir).poll(run_id).message
    anew = RayCluster(cluster.runs_dir, cluster.address)
    assert anew.poll(run_id).status in ("running", "finished")
    heard(anew, run_id, "finished")
    assert whole(anew, run_id).count("round") == 2
    assert "resumed" not in whole(anew, run_id)
    anew.close()


def test_paused_it_leaves_its_place_after_its_round_and_resumed_it_takes_another(cluster, ray, may_end):
    run_id = cluster.start(heal_settings(model="demo", rounds=2))
    cluster.pause(run_id)
    assert cluster.poll(run_id).status == "running"
    may_end.set()
    heard(cluster, run_id, "paused")
    assert whole(cluster, run_id)[-2:] == ["round", "paused"]
    assert cluster.poll(run_id).status == "paused"
    assert ray.actors == {}
    cluster.resume(run_id)
    heard(cluster, run_id, "finished")
    assert whole(cluster, run_id).count("resumed") == 1


def test_a_place_that_is_lost_for_good_interrupts_its_run_alone(cluster, ray, may_end):
    lost, other = begun(cluster), begun(cluster)
    ray.actors[lost].failure = RayError("The actor died\nand was not made anew.")
    heard(cluster, lost, "interrupted")
    assert "The actor died and was not made anew." in cluster.poll(lost).message
    cluster.cancel(other)
    heard(cluster, other, "cancelled")
    assert other not in ray.actors


@pytest.mark.parametrize("anew", [False, True])
def test_while_the_head_is_away_its_runs_wait_and_none_is_made_and_they_go_on_with_it_or_the_next(
    cluster, ray, may_end, monkeypatch, anew
):
    monkeypatch.setattr("steer_heal.runs.jobs.ray_cluster.AGAIN_S", 0.0)
    run_id = begun(cluster)
    before = whole(cluster, run_id)
    ray.answers = False
    with pytest.raises(SettingsError, match="does not answer"):
        cluster.advance()
    state = cluster.poll(run_id)
    assert (state.status, "does not answer" in state.message) == ("interrupted", True)
    for asked in (lambda: cluster.resume(run_id), lambda: cluster.unfit([heal_settings(model="demo")])):
        with pytest.raises(SettingsError, match="answer"):
            asked()
    assert whole(cluster, run_id) == before
    if anew:
        ray.actors.clear()
    ray.answers = True
    may_end.set()
    heard(cluster, run_id, "finished")
    kinds = whole(cluster, run_id)
    assert (kinds.count("started"), kinds.count("resumed")) == (1, int(anew))


def test_a_full_disk_here_loses_nothing(cluster, ray, may_end, monkeypatch):
    run_id = begun(cluster)
    before = whole(cluster, run_id)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    may_end.set()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        for _ in range(5):
            cluster.advance()
        meanwhile = whole(cluster, run_id)
        assert meanwhile[: len(before)] == before
        assert meanwhile.count("round") == before.count("round"), "its files are not here"
    heard(cluster, run_id, "finished")
    assert whole(cluster, run_id).count("round") == 2


def test_a_run_that_is_resumed_elsewhere_loses_its_place_there(cluster, ray):
    run_id = begun(cluster)
    cluster.close()
    os.utime(cluster.folder(run_id).path / "heartbeat", (0, 0))
    LocalProcesses(cluster.runs_dir, at_once=0).resume(run_id)
    anew = RayCluster(cluster.runs_dir, cluster.address)
    assert ray.actors == {}
    assert anew.poll(run_id).status == "queued"
    anew.close()
