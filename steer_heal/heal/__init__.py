"""Train one round: the student learns to say, without steering, what steering made it say."""

from .below import Below
from .examples import Example, batches, learning_rate, split
from .memory import check_memory, needed_bytes
from .output import OutputLayer, hidden_states, labels
from .reference import Reference
from .rows import row_losses
from .train import Objective, held_out_nll, loss_of, train_round

__all__ = [
    "Below",
    "Example",
    "Objective",
    "OutputLayer",
    "Reference",
    "batches",
    "check_memory",
    "held_out_nll",
    "hidden_states",
    "labels",
    "learning_rate",
    "loss_of",
    "needed_bytes",
    "row_losses",
    "split",
    "train_round",
]
