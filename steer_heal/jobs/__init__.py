"""Start, watch, cancel and resume runs. Where a run executes is behind `Launcher`."""

from steer_heal.jobs.folder import RunFolder, Running, this_process
from steer_heal.jobs.local import JobState, Launcher, LocalProcesses

__all__ = ["JobState", "Launcher", "LocalProcesses", "RunFolder", "Running", "this_process"]
