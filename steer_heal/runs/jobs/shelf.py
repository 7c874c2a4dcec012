"""What people say of the runs in a folder: names given later, runs hidden, and runs deleted a moment ago."""

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from steer_heal.config import SettingsError
from steer_heal.whole_file import write_whole

UNDO_S = 60.0
"""How long a deleted run can be brought back."""


class Shelf:
    """`labels.json` and `.deleted/` of a folder of runs. Who changes them holds the folder's lock."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs = runs_dir
        self._file, self._bin = runs_dir / "labels.json", runs_dir / ".deleted"

    def labels(self) -> dict[str, dict[str, Any]]:
        """By run id what was said of it: `name`, `hidden`."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        labels = found.items() if isinstance(found, dict) else ()
        return {run: said for run, said in labels if isinstance(said, dict)}

    def label(self, run_id: str, said: dict[str, Any]) -> None:
        """Adds to what is said of a run. Raises: `OSError`."""
        labels = self.labels()
        labels[run_id] = {**labels.get(run_id, {}), **said}
        write_whole(self._file, json.dumps(labels, ensure_ascii=False, indent=1))

    def put_away(self, run_id: str) -> None:
        """The run's folder is no run any more. Raises: `OSError`."""
        self._bin.mkdir(exist_ok=True)
        (self._runs / run_id).rename(self._bin / run_id)
        os.utime(self._bin / run_id)

    def bring_back(self, run_id: str) -> None:
        """Raises: `SettingsError` when that is no longer possible."""
        if not (self._bin / run_id).is_dir():
            raise SettingsError(f"Run {run_id} is gone: a deleted run can be brought back for a minute.")
        (self._bin / run_id).rename(self._runs / run_id)

    def sweep(self) -> None:
        """Removes for good what was put away long enough ago."""
        with suppress(OSError):
            for gone in self._bin.iterdir():
                if time.time() - gone.stat().st_mtime > UNDO_S:
                    shutil.rmtree(gone, ignore_errors=True)
