"""The page over the fake engine: `python -m tests.browser.serve_fake PORT [ROUND_SECONDS [DELAY [RUNS]]]`."""

import sys
from importlib import import_module

from components import quick_import
from components.access import bind
from steer_heal.config import heal_settings
from tests.fake_engine import FakeEngine

NAME = "which is a name as long as the name of a run may be, and goes on and on and on"

if __name__ == "__main__":
    seconds, delay, n_runs = (
        float(given) for given in (*sys.argv[2:], *["3", "0.02", "0"][len(sys.argv) - 2 :])
    )
    engine = FakeEngine(delay=delay, round_seconds=seconds)
    for seed in range(int(n_runs)):
        model = "other" if seed == 0 else "demo"
        settings = heal_settings(model=model, rounds=3, seed=seed, name=f'"{seed}" {NAME}'[:80])
        engine.runs.start(settings, started=1e9 + seed)
    quick_import.import_gradio()
    with bind("127.0.0.1", int(sys.argv[1])) as listening:
        import_module("components.server").serve(engine, listening)
