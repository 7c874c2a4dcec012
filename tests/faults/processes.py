"""Processes to be killed: `python -m tests.faults.processes write RUNS`, and `... ingest RUNS DB`."""

import itertools
import sys
import time
from contextlib import suppress
from pathlib import Path

from steer_heal.config import heal_settings
from steer_heal.runs import events
from steer_heal.runs.events import EventLog
from steer_heal.runs.store import Store, StoreBusy
from tests.runs import play_round, start


def write(runs: str) -> None:
    """Some 30 rounds a second into a run's log."""
    path = Path(runs) / "care-1" / "events.jsonl"
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


def ingest(runs: str, db: str) -> None:
    """Takes logs into a store, again and again, as a page does it."""
    store = Store(db)
    offsets = store.marks()
    print("ready", flush=True)
    while True:
        for folder in Path(runs).iterdir():
            chunk = events.read(folder / "events.jsonl", offsets.get(folder.name, 0))
            if chunk.events:
                with suppress(StoreBusy):
                    store.ingest(folder.name, chunk)
                    offsets[folder.name] = chunk.offset
        time.sleep(0.002)


if __name__ == "__main__":
    {"write": write, "ingest": ingest}[sys.argv[1]](*sys.argv[2:])
