"""A run as the page has it: a process of the bundled model, killed, resumed, and equal to one never cut."""

import json
import os
import signal

from steer_heal.cli import main
from steer_heal.config import HealSettings, heal_settings
from steer_heal.engine.run_index import RunIndex
from steer_heal.runs.jobs import LocalProcesses
from steer_heal.runs.store import Store
from tests.jobs import until
from tests.rounds import OPEN
from tests.same import differing

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


def test_killed_in_its_second_round_and_resumed_it_ends_like_one_never_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launcher = LocalProcesses(tmp_path / "runs")
    index = RunIndex(launcher, Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0)
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
