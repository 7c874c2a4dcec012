"""The log: what is written is read, a torn end is ignored and overwritten, nothing unreadable is fatal."""

import resource
import signal
from pathlib import Path

import pytest

from steer_heal.config import SettingsError
from steer_heal.runs import events
from steer_heal.runs.events import EventLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "events.jsonl"


def write(path: Path, n: int) -> None:
    with EventLog(path) as log:
        for index in range(n):
            log.append("completion", 1, {"index": index, "text": f"né {index}\n\U0001f600"})


def test_a_log_shorter_than_the_offset_is_read_from_its_start(path: Path) -> None:
    write(path, 2)
    assert len(events.read(path, 10**6).events) == 2


def test_the_last_event_is_found_behind_a_line_longer_than_the_tail(path: Path) -> None:
    with EventLog(path) as log:
        log.append("profile", 1, {"text": "x" * 300_000})
        log.append("finished")
    assert getattr(events.last(path), "kind", None) == "finished"
    path.write_bytes(path.read_bytes()[:-3])
    assert getattr(events.last(path), "kind", None) == "profile"


def test_what_has_no_json_form_is_refused_and_the_log_unchanged(path: Path) -> None:
    with EventLog(path) as log:
        with pytest.raises(TypeError):
            log.append("step", 1, {"loss": object()})
        assert log.append("step").seq == 0


def test_a_full_disk_raises_leaves_no_half_line_and_writing_can_go_on(path: Path) -> None:
    write(path, 1)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with EventLog(path) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limits[1]))
        try:
            with pytest.raises(OSError):
                log.append("completion", 1, {"text": "too long for what is left of the disk"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.stat().st_size == size
        assert log.append("completion").seq == 1
    assert len(events.read(path).events) == 2


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="Cannot write"):
        EventLog(tmp_path / "file" / "events.jsonl")
