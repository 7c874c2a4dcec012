"""What the fault tests share: how many faults, the table of what was injected, survived and lost."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FEW = 3
MANY = int(os.environ.get("FAULTS", "50"))
FAULTS_ONLY = [pytest.param(MANY, id="many", marks=pytest.mark.faults)]
COUNTS = [pytest.param(FEW, id="few"), *FAULTS_ONLY]


@dataclass
class Tally:
    """Faults of one kind. A fault that is neither survived nor found lost is counted as lost at the end."""

    name: str
    injected: int = 0
    survived: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.injected - self.survived


_TALLIES: list[Tally] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    made = Tally((request.node.name.removeprefix("test_")).replace("_", " "))
    _TALLIES.append(made)
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _TALLIES:
        return
    terminalreporter.write_sep("=", "faults: injected, survived, lost")
    for tally in _TALLIES:
        row = f"{tally.injected:6d} {tally.survived:6d} {tally.lost:6d}  {tally.name}"
        terminalreporter.write_line(f"{row}  {'; '.join(tally.notes)}".rstrip())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own; skips where one may not be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Takes all the room that is left."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for piece in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * piece) == piece:
                    pass
            except OSError:
                continue
    return filler
