"""Heal a model: the whole algorithm, which yields events and knows no store, and what trains one round."""

from steer_heal.heal.algorithm import STAGES, run
from steer_heal.heal.chunked_loss import Targets, batch_loss, row_losses
from steer_heal.heal.examples import Example, batches, learning_rate, split
from steer_heal.heal.frozen_prefix import FrozenPrefix
from steer_heal.heal.lm_head import OutputLayer, hidden_states, labels
from steer_heal.heal.memory import check_memory, needed_bytes
from steer_heal.heal.reference import Reference
from steer_heal.heal.schedule import seed_of
from steer_heal.heal.train import Objective, held_out_nll, loss_of, train_round
