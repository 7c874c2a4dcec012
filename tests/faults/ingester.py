"""Takes logs into a store, again and again: `python -m tests.faults.ingester RUNS DB`; as a page does it."""

import sys
import time
from contextlib import suppress
from pathlib import Path

from steer_heal.runs import events
from steer_heal.runs.store import Store, StoreBusy

if __name__ == "__main__":
    runs, store = Path(sys.argv[1]), Store(sys.argv[2])
    offsets = store.marks()
    print("ready", flush=True)
    while True:
        for folder in runs.iterdir():
            chunk = events.read(folder / "events.jsonl", offsets.get(folder.name, 0))
            if chunk.events:
                with suppress(StoreBusy):
                    store.ingest(folder.name, chunk)
                    offsets[folder.name] = chunk.offset
        time.sleep(0.002)
