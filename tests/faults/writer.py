"""Writes some 30 rounds a second into a run's log, without a model: `python -m tests.faults.writer RUNS`."""

import itertools
import sys
import time
from pathlib import Path

from steer_heal.config import heal_settings
from steer_heal.runs import events
from steer_heal.runs.events import EventLog
from tests.runs import play_round, start

if __name__ == "__main__":
    path = Path(sys.argv[1]) / "care-1" / "events.jsonl"
    done = max((event.round or 0 for event in events.read(path).events if event.kind == "round"), default=0)
    with EventLog(path) as log:
        if log.next_seq:
            log.append("resumed", None, {"round": done})
        else:
            start(log, heal_settings(model="demo", rounds=32))
        print("ready", flush=True)
        for round_ in itertools.count(done + 1):
            play_round(log, round_)
            time.sleep(0.03)
