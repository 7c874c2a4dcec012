"""How much memory a training step needs above the weights, and a refusal where there is not as much."""

from __future__ import annotations

from steer_heal.config import SettingsError, TrainSettings
from steer_heal.heal.frozen_prefix import KEPT_BYTES
from steer_heal.heal.lm_head import CHUNK_BYTES
from steer_heal.models import LanguageModel
from steer_heal.models.files import GIB, free

SPARE = 1.5


def needed_bytes(
    lm: LanguageModel, settings: TrainSettings, layers: int, n_prompt: int, n_completion: int, n_examples: int
) -> int:
    """An upper estimate, in bytes. `layers`: blocks from the first that carries the LoRA to the last of all.

    Kept for the gradient, a token and block: about 12 states of the model's width and 5 of the MLP's; for all
    examples: the reference's states of the completion and, where blocks lie below the first that carries the
    LoRA, what reaches it.
    """
    shape = lm.model.config.get_text_config(decoder=True)
    tokens = settings.batch_size * (n_prompt + n_completion)
    width = lm.dtype.itemsize
    kept = tokens * layers * width * (12 * shape.hidden_size + 5 * shape.intermediate_size)
    ahead = tokens * width * (8 * shape.hidden_size + 3 * shape.intermediate_size)
    hidden = 3 * 4 * settings.batch_size * n_completion * shape.hidden_size
    held = n_examples * n_completion * (settings.divergence != "nll") * shape.hidden_size * width
    below = n_examples * (n_prompt + n_completion) * shape.hidden_size * width
    held += min(KEPT_BYTES, below) if layers < lm.n_layers else 0
    logits = min(CHUNK_BYTES, 2 * settings.batch_size * n_completion * shape.vocab_size * width)
    return int(SPARE * (kept + ahead + hidden + held + logits))


def check_memory(
    lm: LanguageModel, settings: TrainSettings, layers: int, n_prompt: int, n_completion: int, n_examples: int
) -> None:
    """Errors: `SettingsError`, with the numbers, when a step would not fit into what is free now."""
    wanted = needed_bytes(lm, settings, layers, n_prompt, n_completion, n_examples)
    room = free(str(lm.device))
    if wanted > room:
        tokens = f"batches of {settings.batch_size} times {n_prompt + n_completion} tokens"
        raise SettingsError(
            f"Training needs about {wanted / GIB:.1f} GiB of memory on {lm.device} above the weights "
            f"({tokens}) and {room / GIB:.1f} GiB are free: lower train.batch_size or "
            "data.max_new_tokens."
        )
