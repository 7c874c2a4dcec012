"""A worker without a model: does at once, never, or not at all what the run's name says."""

import os
import signal
import sys
import time
from pathlib import Path

from steer_heal.runs.events import EventLog
from steer_heal.runs.jobs import RunFolder
from tests.runs import play_round, start


def main(path: str) -> int:
    folder = RunFolder(Path(path))
    how = folder.settings().name
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1) if how != "deaf" else None)
    done = folder.last_round()
    with EventLog(folder.log) as log:
        if done:
            log.append("resumed", None, {"round": done})
        else:
            start(log, folder.settings())
        play_round(log, done + 1)
        if how == "crash":
            print("the last line of its log", flush=True)
            os._exit(3)
        while how in ("hang", "deaf") and not stopped:
            time.sleep(0.01)
        while how == "slow" and not stopped and not folder.asked("pause"):
            time.sleep(0.01)
        if how == "slow" and not stopped:
            rest(folder, log, stopped)
        if stopped:
            log.append("cancelled", None, {"message": "when asked"})
            return 1
        log.append("finished", None, {"reason": "all rounds done"})
    return 0


def rest(folder: RunFolder, log: EventLog, stopped: list[int]) -> None:
    log.append("paused", None, {})
    folder.rest(True)
    while folder.asked("pause") and not stopped:
        time.sleep(0.01)
    folder.rest(False)
    log.append("continued", None, {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
