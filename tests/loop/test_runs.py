"""Runs of the bundled model as processes here and on a real Ray: killed and resumed, also where a node or the
head dies, they end like one that was never cut."""

import json
import os
import signal
import threading
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

from steer_heal.cli import main
from steer_heal.config import HealSettings, axes, heal_settings
from steer_heal.engine.run_index import RunIndex
from steer_heal.engine.run_sweeps import RunSweeps
from steer_heal.runs import events
from steer_heal.runs.jobs import LocalProcesses, RunFolder, this_process
from steer_heal.runs.jobs.ray_cluster import RayCluster
from steer_heal.runs.store import Store
from steer_heal.runs.worker import work
from tests.jobs import until as until_looked
from tests.ray_nodes import kill, two_nodes
from tests.rounds import OPEN
from tests.same import differing

until = partial(until_looked, every_s=0.5)
"""Who looks all the time leaves the runs no processor."""
SMALL = {
    "data": {"n_answers": 16, "n_plain": 0, "min_kept": 2, "max_new_tokens": 12},
    "filter": OPEN,
    "extract": {"method": "mean_diff", "n_contexts": 16},
    "calibrate": {"n_prompts": 2, "n_tokens": 8},
    "train": {"epochs": 1},
    "evaluate": {"frame": "choice", "n_vignettes": 7, "n_answers": 2, "controls": 0},
}


def small(rounds: int) -> HealSettings:
    return heal_settings("quick", model="demo", rounds=rounds, seed=3, **SMALL)


def indexed(launcher: LocalProcesses, folder: Path) -> RunIndex:
    return RunIndex(launcher, Store(folder / "runs.duckdb"), example=None, every_s=0.0)


def test_killed_in_its_second_round_and_resumed_it_ends_like_one_never_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = LocalProcesses(tmp_path / "runs")
    index = indexed(launcher, tmp_path)
    run_id = index.start(small(2))
    until(lambda: any(event.round == 2 for event in launcher.events(run_id).events))
    pid = launcher.poll(run_id).pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: index.rows()[0].status == "interrupted")
    assert index.rows()[0].round == 1
    index.resume(run_id)
    until(lambda: index.rows()[0].status not in ("queued", "running"))
    assert index.rows()[0].status == "finished", index.rows()[0].message
    stages = [(node.round, node.stage) for node in index.map([run_id])]
    assert stages == [(0, "base"), (1, "steered"), (1, "healed"), (2, "healed")]
    assert index.round(run_id, 2).losses

    arguments = ["heal", "--rounds", "2", "--seed", "3", "--json", "--runs", str(tmp_path / "other")]
    for part, values in SMALL.items():
        for key, value in values.items():
            arguments += ["--set", f"{part}.{key}={value}"]
    assert main([*arguments, "--db", str(tmp_path / "other.duckdb")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"] == small(2).model_dump(mode="json")
    uncut = tmp_path / "other" / document["run_id"]
    assert differing(tmp_path / "runs" / run_id, uncut) == []


@pytest.fixture(scope="module")
def nodes():
    """A real Ray of two nodes. The second is gone after the first test: the other needs the head alone."""
    pytest.importorskip("ray", reason="steer-heal[ray] is not installed")
    with two_nodes() as started:
        yield started


def kinds(index: RunIndex, run_id: str) -> list[str]:
    index.watermark()
    return [event.kind for event in index.launcher.events(run_id).events]


@pytest.mark.timeout(900)
def test_a_sweep_on_two_nodes_of_which_one_dies_ends_like_one_here(nodes, tmp_path):
    runs, here = tmp_path / "there" / "runs", LocalProcesses(tmp_path / "here" / "runs")
    there = RayCluster(runs, nodes.address)
    until(lambda: sum(one["Alive"] for one in import_module("ray").nodes()) == 2)
    index = indexed(there, tmp_path / "there")
    sweep = RunSweeps(index, runs).start(small(2), axes.parse(["train.divergence=nll,kl_fwd"]))
    logs = [there.folder(cell.run_id).log for cell in sweep.cells]

    def second_round() -> bool:
        index.watermark()
        return all(any(event.round == 2 for event in events.read(log).events) for log in logs)

    until(second_round)
    kill(nodes.second)
    there.close()  # as if whoever listens were killed too, and others came
    with closing(RayCluster(runs, nodes.address)) as anew:
        index = indexed(anew, tmp_path / "there")
        sweeps = RunSweeps(index, runs)

        def finished() -> bool:
            index.watermark()
            return all(state and state.status == "finished" for state in sweeps.states(sweep))

        until(finished, 600.0)
    for log in logs:
        seqs = [event.seq for event in events.read(log).events]
        assert seqs == list(range(len(seqs)))
    (cut,) = (log for log in logs if any(event.kind == "resumed" for event in events.read(log).events))
    same = here.create(RunFolder(cut.parent).settings(), worker=this_process())
    assert work(same, threading.Event()) == "finished"
    assert differing(cut.parent, same.path) == []


@pytest.mark.timeout(600)
def test_a_run_there_is_paused_resumed_cancelled_and_outlives_the_head(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr("steer_heal.runs.jobs.ray_cluster.AGAIN_S", 1.0)
    with closing(RayCluster(tmp_path / "runs", nodes.address)) as there:
        index = indexed(there, tmp_path)
        run_id = index.start(small(2))
        until(lambda: "started" in kinds(index, run_id))
        index.pause(run_id)
        until(lambda: kinds(index, run_id)[-1] == "paused")
        assert there.poll(run_id).status == "paused"
        assert kinds(index, run_id)[-2] == "round"
        index.resume(run_id)
        until(lambda: "resumed" in kinds(index, run_id))
        index.cancel(run_id)
        until(lambda: kinds(index, run_id)[-1] == "cancelled")
        assert there.poll(run_id).status == "cancelled"
        adapter = there.folder(run_id).path / "adapters" / "round-1" / "adapter_model.safetensors"
        before = adapter.read_bytes()

        index.resume(run_id)
        until(lambda: kinds(index, run_id).count("resumed") == 2)
        kill(nodes.head)
        until(lambda: bool(index.watermark()) and "does not answer" in index.message())
        assert there.poll(run_id).status == "interrupted"
        nodes.restart_head()
        until(lambda: kinds(index, run_id)[-1] == "finished", 300.0)
        assert index.message() == ""
        assert kinds(index, run_id).count("round") == 2
        assert adapter.read_bytes() == before
