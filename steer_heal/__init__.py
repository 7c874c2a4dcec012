"""Steer, break and heal a language model: the engine. It never imports gradio or components."""

import os

__version__ = "0.1.0"

# Read when torch is first imported. Waiting threads that spin take the cores from whoever has work: with the
# machine busy, decoding on two threads took 30 times the processor time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
