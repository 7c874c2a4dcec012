"""Start, watch, pause, cancel and resume runs. Where a run executes is behind `Launcher`."""

from steer_heal.runs.jobs.folder import RunFolder
from steer_heal.runs.jobs.launcher import About, JobState, Launcher
from steer_heal.runs.jobs.local import LocalProcesses
from steer_heal.runs.jobs.processes import Running, this_process
