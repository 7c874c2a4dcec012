"""The real worker on a tiny model: `python -m tests.faults.tiny_worker FOLDER`."""

import sys
from types import SimpleNamespace

import torch

from steer_heal.runs import worker
from tests import tiny

if __name__ == "__main__":
    torch.set_num_threads(1)
    worker.models.load = lambda _name: tiny.language_model("llama", n_layers=4)  # type: ignore[assignment]
    # The test decides what is started next.
    worker.LocalProcesses = lambda *_a, **_k: SimpleNamespace(advance=lambda: None)  # type: ignore
    sys.exit(worker.main(sys.argv[1:]))
