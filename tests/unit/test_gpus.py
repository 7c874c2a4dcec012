"""Which GPUs a run gets; on a machine that need not have any."""

from __future__ import annotations

import pytest

from steer_heal.runs.jobs import RunFolder, Running, gpus


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "3, GPU-8ab"}, ["3", "GPU-8ab"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,0"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": "3", "STEER_HEAL_GPUS": "2,3"}, ["2", "3"]),
    ],
)
def test_what_the_environment_allows_is_respected(environment, names, tmp_path):
    for device in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / device).mkdir()
    assert gpus.visible(environment, tmp_path) == names
    assert gpus.visible({}, tmp_path / "no driver") == []


@pytest.mark.parametrize(
    ("here", "taken", "at_once", "given"),
    [
        ([], [], 2, []),
        (["0", "1"], [], 1, ["0", "1"]),
        (["0", "1"], ["0"], 2, ["1"]),
        (["0", "1", "2", "3"], ["0", "1"], 2, ["2", "3"]),
        (["0"], ["0"], 2, ["0"]),
        (["0", "1"], ["0", "1", "1"], 4, ["0"]),
    ],
)
def test_runs_at_once_have_gpus_of_their_own_while_there_are_enough(here, taken, at_once, given):
    assert gpus.share(here, taken, at_once) == given


def test_a_worker_learns_its_own_and_the_next_one_all_of_them(tmp_path):
    told = gpus.environment(["0", "1"], ["1"])
    assert told["CUDA_VISIBLE_DEVICES"] == "1"
    assert gpus.visible(told, tmp_path) == ["0", "1"]
    assert gpus.environment([], []) == {}
    folder = RunFolder(tmp_path / "run-1")
    folder.path.mkdir()
    folder.claim(Running(1, 2.0, "here", "boot", "0,1"))
    assert folder.process() == Running(1, 2.0, "here", "boot", "0,1")
