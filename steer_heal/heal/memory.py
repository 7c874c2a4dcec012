"""How much memory a training step needs above the weights, a refusal where there is not as much, and what a
whole run needs, told before it begins."""

from collections.abc import Sequence
from functools import lru_cache

from steer_heal.config import HealSettings, SettingsError, TrainSettings
from steer_heal.forward.network import PACKED_BYTES
from steer_heal.heal.examples import LEARNED
from steer_heal.heal.frozen_prefix import KEPT_BYTES
from steer_heal.heal.lm_head import CHUNK_BYTES
from steer_heal.heal.schedule import trained_layers
from steer_heal.models import LanguageModel, outline, user
from steer_heal.models.files import GIB, free

SPARE = 1.5
Step = tuple[TrainSettings, int, int, int, int]
PROCESS_BYTES = GIB // 2
"""What Python, torch and transformers hold before there is a model."""


def run_bytes(settings: HealSettings) -> int | None:
    """An upper estimate of what a run's process holds: itself, the weights, copies of them that are packed
    for few tokens, and a training step with the longest prompt. Reckoned from the files of its model, as they
    would be loaded here; None where they are not on this machine. Errors: `SettingsError`."""
    lm = outline(settings.model)
    if lm is None:
        return None
    weights = sum(parameter.nbytes for parameter in lm.model.parameters())
    step = needed_bytes(lm, *step_of(lm, settings, _longest(lm, settings.trait)))
    return PROCESS_BYTES + weights + min(weights, PACKED_BYTES) + step


@lru_cache(maxsize=16)
def _longest(outlined: LanguageModel, trait: str) -> int:
    material = outlined.material
    return longest_prompt(outlined, [*material.heal_prompts(trait), *material.plain_prompts()])


def longest_prompt(lm: LanguageModel, prompts: Sequence[str]) -> int:
    """Tokens of the longest of the prompts as a chat."""
    return max(map(len, lm.encode_chats([[user(text)] for text in prompts])))


def step_of(lm: LanguageModel, settings: HealSettings, n_prompt: int) -> Step:
    """What `needed_bytes` asks of a run's training."""
    layers = lm.n_layers - trained_layers(lm.n_layers, settings.band)[0]
    made = settings.data
    n_completion = min(made.max_new_tokens, LEARNED)
    return settings.train, layers, n_prompt, n_completion, made.n_answers + made.n_plain


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
            f"({tokens}) and {room / GIB:.1f} GiB are free: lower train.batch_size."
        )
