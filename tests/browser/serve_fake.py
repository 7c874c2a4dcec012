"""The page over the fake engine, as a process: `python -m tests.browser.serve_fake PORT [ROUND_SECONDS]`."""

import sys

from components.access import bind
from components.server import serve
from tests.fake_engine import FakeEngine

if __name__ == "__main__":
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    delay = float(sys.argv[3]) if len(sys.argv) > 3 else 0.02
    with bind("127.0.0.1", int(sys.argv[1])) as listening:
        serve(FakeEngine(delay=delay, round_seconds=seconds), listening)
