"""Runs of an older version: looked at, cloned, exported, not gone on with; their folders as they were."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from steer_heal.config import HealSettings, SettingsError, heal_settings, stored_settings
from steer_heal.config.healing import RETIRED
from steer_heal.engine.run_index import EXAMPLE_ID, RunIndex
from steer_heal.runs import worker
from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import LocalProcesses, RunFolder
from steer_heal.runs.store import Store
from tests.runs import play_round, start

SENTENCE = "was begun by an older version, whose way of healing is gone: start a new run"


def older(settings: HealSettings) -> dict[str, Any]:
    """The settings as an older version wrote them, with every name that is gone."""
    document = settings.model_dump(mode="json")
    for part, names in RETIRED.items():
        document[part] |= dict.fromkeys(names, 0.5)
    document["train"]["aggregate"] = "p95"
    return document


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of an older version that was cancelled after its first round."""
    settings = heal_settings(model="demo", rounds=2, seed=5, train={"lam": 0.7})
    folder = LocalProcesses(tmp_path / "runs").create(settings)
    folder.write("config.json", json.dumps(older(settings)))
    with EventLog(folder.log) as log:
        start(log, settings)
        play_round(log, 1)
        log.append("cancelled", None, {"message": "enough"})
    return folder


def files(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_the_settings_of_an_older_run_are_read_without_what_is_gone() -> None:
    settings = heal_settings(model="demo", seed=5, train={"lam": 0.7})
    assert stored_settings(json.dumps(older(settings))) == (settings, True)
    assert stored_settings(settings.model_dump_json()) == (settings, False)
    for wrong in ('{"model": "demo", "future": 1}', '{"model": "demo", "data": 3}', "[]", "3", "{"):
        with pytest.raises(ValueError):
            stored_settings(wrong)


def test_it_is_shown_cloned_and_exported(folder: RunFolder, tmp_path: Path, run: Any) -> None:
    before = files(folder)
    index = RunIndex(
        LocalProcesses(folder.path.parent), Store(tmp_path / "runs.duckdb"), example=None, every_s=0.0
    )
    index.watermark()
    assert [(row.run_id, row.status, row.round) for row in index.rows()] == [(folder.run_id, "cancelled", 1)]
    assert [(node.round, node.stage) for node in index.map([folder.run_id])] == [
        (0, "base"), (1, "steered"), (1, "healed"),
    ]  # fmt: skip
    assert index.round(folder.run_id, 1).facts["headline"]["word"] == "healed"
    assert index.settings(folder.run_id).train.lam == 0.7
    clone = LocalProcesses(folder.path.parent).create(index.settings(folder.run_id))
    assert clone.resumable() == index.settings(folder.run_id)
    places = ("--runs", str(folder.path.parent), "--db", str(tmp_path / "runs.duckdb"))
    code, _, err = run("export", "--run", folder.run_id, "--out", str(tmp_path / "out"), *places)
    assert code == 0, err
    assert (tmp_path / "out" / "config.json").read_bytes() == before["config.json"]
    assert files(folder) == before


def test_it_is_not_gone_on_with(folder: RunFolder, run: Any, tmp_path: Path) -> None:
    before, launcher = files(folder), LocalProcesses(folder.path.parent)
    for go_on in (
        lambda: launcher.resume(folder.run_id),
        lambda: worker.work(folder, threading.Event()),
    ):
        with pytest.raises(SettingsError, match=SENTENCE):
            go_on()
    places = ("--runs", str(folder.path.parent), "--db", str(tmp_path / "runs.duckdb"))
    code, _, err = run("heal", "--resume", folder.run_id, *places)
    assert code == 2
    assert SENTENCE in err
    assert files(folder) == before


def test_the_settings_of_the_shipped_example_can_be_cloned(tmp_path: Path) -> None:
    index = RunIndex(LocalProcesses(tmp_path / "runs"), Store(tmp_path / "runs.duckdb"), every_s=0.0)
    settings = index.settings(EXAMPLE_ID)
    (shown,) = index.rows()
    assert (settings.model, settings.rounds, settings.trait) == (shown.model, shown.rounds, shown.trait)
    assert len(index.map([EXAMPLE_ID])) == 2 + settings.rounds  # base, steered once, a healed one a round
    assert LocalProcesses(tmp_path / "runs").create(settings).resumable() == settings
